"""Arguments of a call that all pipelines share, on the shipped toy."""

import inspect
from dataclasses import fields

import numpy as np
import pytest
import torch
from diffusers import (
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchHeunDiscreteScheduler,
    Flux2KleinPipeline,
    SASolverScheduler,
    UniPCMultistepScheduler,
    schedulers,
)
from toy_pipeline import ADAPTER, BASE, PROMPTS, largest_difference, noise, samples, seeded

from asymflow.diffusers_pipeline import AsymFlux2KleinPipeline
from asymflow.diffusers_pipeline.run import Arguments
from asymflow.models.cells import pack_latents
from asymflow.patches import patchify
from asymflow.schedule import calibrate, sampling_sigmas
from asymflow.subspace import Subspace

SHIFT = 3.55  # of the shipped adapter
SDE = {"algorithm_type": "sde-dpmsolver++"}


def test_defaults_are_those_of_text_to_image():
    known = inspect.signature(AsymFlux2KleinPipeline.__call__).parameters
    shared = {field.name: field.default for field in fields(Arguments)}
    assert shared == {name: known[name].default for name in shared}
    assert set(known) - set(shared) == {"self", "image", "height", "width"}


def test_noise_levels_may_be_given(pipe):
    plain = samples(pipe, num_inference_steps=3)
    spaced = samples(pipe, num_inference_steps=None, sigmas=np.linspace(1, 1 / 3, 3).tolist())
    assert largest_difference(spaced, plain) < 1e-5
    seen = []
    samples(
        pipe, num_inference_steps=None, sigmas=[1.0, 0.5], shift=1.0,
        callback_on_step_end=lambda pipeline, step, timestep, tensors: seen.append(timestep) or {},
    )  # fmt: skip
    assert seen == [1000, 500]


def test_a_preview_is_the_denoised_image(pipe):
    seen = []

    def watch(pipeline, step, timestep, tensors):
        seen.append((timestep / 1000, tensors["latents"], tensors["x_0"]))
        return {}

    found = samples(
        pipe, output_type="latent", callback_on_step_end=watch, callback_on_step_end_tensor_inputs=["latents", "x_0"]
    )
    assert torch.equal(seen[-1][2], found)
    shown = pipe.image_processor.postprocess(pipe.space.decode(seen[0][2]))[0]
    assert shown.size == (64, 64)
    expected = torch.lerp(seen[0][2], noise(), seen[1][0])  # the first step of every solver is Euler's
    assert largest_difference(seen[0][1], expected) < 2e-3  # UniPC's first level is clamped below 1


def test_the_last_steps_alone_are_clamped(pipe, monkeypatch):
    clamped, own = [], type(pipe.space).clamp_to_gamut
    monkeypatch.setattr(type(pipe.space), "clamp_to_gamut", lambda space, x: clamped.append(1) or own(space, x))
    for fraction, expected in [(True, 4), (1, 4), (0.5, 2), (0.3, 2), (0.01, 1), (0, 0), (False, 0)]:
        clamped.clear()
        samples(pipe, num_inference_steps=4, clamp_to_gamut=fraction)
        assert len(clamped) == expected, fraction


def test_a_part_of_orthogonal_guidance_lies_between_none_and_all(pipe):
    none, part, all_ = (
        samples(pipe, guidance_scale=5.0, num_inference_steps=1, orthogonal_guidance=value, output_type="latent",
                clamp_to_gamut=False)
        for value in (False, 0.5, True)
    )  # fmt: skip
    assert largest_difference(part, (none + all_) / 2) < 1e-5 < largest_difference(none, all_)


def test_the_shift_outside_one_to_four_megapixels_is_a_choice(pipe):
    found = {law: samples(pipe, shift_law=law) for law in ("sqrt", "constant", "extrapolated")}
    assert torch.equal(found["sqrt"], found["constant"])
    assert torch.equal(found["extrapolated"], samples(pipe, shift=SHIFT * 64 / 1024))
    assert pipe.defaults.shift_at(4096, 4096, "extrapolated") == pytest.approx(4 * pipe.defaults.shift)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigmas": [0.9, 0.5], "num_inference_steps": None}, "^sigmas begins at 0.9; without an image it begins at 1"),
        ({"sigmas": [1.0, 0.5]}, "^sigmas has 2 noise levels; expected 3"),
        ({"sigmas": []}, r"^sigmas is \[\]"),
        ({"orthogonal_guidance": 1.5}, "^orthogonal_guidance is 1.5"),
        ({"clamp_to_gamut": -1}, "^clamp_to_gamut is -1"),
        ({"shift_law": "log"}, "^shift law is 'log'; allowed: sqrt, constant, extrapolated"),
    ],
)
def test_bad_arguments_are_named(pipe, options, message):
    with pytest.raises(ValueError, match=message):
        samples(pipe, **options)


@pytest.mark.parametrize("scheduler", [FlowMatchHeunDiscreteScheduler(), SASolverScheduler(tau_func=lambda t: 1)])
def test_inpainting_works_with_every_kind_of_solver(pipe, inpaint, photograph, scheduler):
    mask = photograph.getchannel("R").point(lambda value: 255 * (value > 128))
    pipeline = inpaint.func
    before, pipeline.scheduler = pipeline.scheduler, scheduler
    try:
        options = {"image": photograph, "mask_image": mask, "num_inference_steps": 3, "strength": 1.0}
        one, same, other = (inpaint(**options, generator=seeded(seed)).images[0] for seed in (1, 1, 2))
    finally:
        pipeline.scheduler = before
    assert one.tobytes() == same.tobytes() != other.tobytes()


def at_levels(kind, sigmas, s, **options):
    """A scheduler of the stock pipeline at the latent noise levels; its own start below 1 and are rounded."""
    taus, inside = (calibrate(levels, s)[0].float() for levels in (sigmas, sigmas.clamp(1e-6, 1 - 1e-4)))

    class AtLevels(kind):
        def set_timesteps(self, count, device=None, **_):
            super().set_timesteps(count, device=device)
            self.sigmas, self.timesteps = inside, 1000 * taus[:-1]

    return AtLevels(prediction_type="flow_prediction", use_flow_sigmas=True, **options)


@pytest.fixture(scope="module")
def untrained():
    subspace = Subspace.load(ADAPTER / "subspace.safetensors")
    pixel = AsymFlux2KleinPipeline.from_pretrained(BASE, subspace=subspace)
    latent = Flux2KleinPipeline.from_pretrained(BASE)
    for pipeline in (pixel, latent):
        pipeline.set_progress_bar_config(disable=True)
    return subspace, pixel, latent


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (UniPCMultistepScheduler, {}), (DPMSolverMultistepScheduler, {}), (DPMSolverMultistepScheduler, SDE),
        (DEISMultistepScheduler, {}), (SASolverScheduler, {"tau_func": lambda t: 0.5}),
    ],
)  # fmt: skip
def test_theorem_1_each_solver_samples_as_its_scheduler_in_the_stock_pipeline(untrained, monkeypatch, kind, options):
    subspace, pixel, latent = untrained
    steps, start, drawn = 8, noise(seed=3, width=48, height=32), []

    def draw(shape, generator=None, device=None, dtype=None):
        drawn.append(torch.randn(shape, generator=generator))
        return drawn[-1]

    modules = (schedulers.scheduling_dpmsolver_multistep, schedulers.scheduling_sasolver)
    for module in modules:
        monkeypatch.setattr(module, "randn_tensor", draw)
    text = pixel.encode_prompt(PROMPTS[0])[0][None]
    common = {"prompt_embeds": text, "num_inference_steps": steps, "guidance_scale": 1.0, "height": 32, "width": 48}
    pixel.scheduler = kind(**options)
    x_0 = pixel(
        latents=start, output_type="latent", shift=SHIFT, clamp_to_gamut=False, generator=seeded(5), **common
    ).images

    projected = iter([patchify(one, 4) @ subspace.A for one in drawn])
    for module in modules:  # the last step, to 1e-6 and not to 0, has a part of 1e-6 of its noise
        monkeypatch.setattr(module, "randn_tensor", lambda shape, **_: next(projected, torch.zeros(shape)))
    latent.scheduler = at_levels(kind, sampling_sigmas(steps, SHIFT), subspace.s, **options)
    z_1 = (patchify(start, 4) @ subspace.A).mT.unflatten(2, (8, 12))
    tokens, bn = pack_latents(latent(latents=z_1, output_type="latent", **common).images), latent.vae.bn
    z_0 = (tokens - bn.running_mean) / torch.sqrt(bn.running_var + latent.vae.config.batch_norm_eps)
    found = patchify(x_0, 4) @ subspace.A / subspace.s
    assert largest_difference(found, z_0) < 2e-3 * float(z_0.abs().max())  # both start at 1 - 1e-4 inside
    assert bool(drawn) == (options is SDE or kind is SASolverScheduler)
