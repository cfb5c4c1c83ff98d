"""The pipeline on the shipped toy: real diffusers, real files."""

import math

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
)
from PIL import Image
from safetensors.torch import save_file
from toy_pipeline import ADAPTER, BASE, PROMPTS, largest_difference, noise, samples, seeded

from asymflow.adapters import SamplingDefaults, load_adapter
from asymflow.diffusers_pipeline import AsymFlux2KleinPipeline
from asymflow.models.autoencoder import encode_images
from asymflow.models.cells import pack_latents
from asymflow.models.conditioned import TextVelocity
from asymflow.models.flux2 import PixelFlux2
from asymflow.models.text import pad_embeddings
from asymflow.patches import patchify
from asymflow.samplers import euler, heun, unipc
from asymflow.subspace import Subspace

PATCH = 4
SHIFT = 3.55  # of the shipped adapter


def test_defaults_of_the_shipped_toy_give_an_image_of_it(pipe):
    image = pipe(PROMPTS[0], generator=seeded()).images[0]
    assert isinstance(image, Image.Image)
    assert image.size == (64, 64)
    corners = np.asarray(image)[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert corners.mean() > 200  # on white
    assert np.asarray(image)[16:48, 16:48].std() > 40  # with something on it


def test_equals_the_model_as_it_was_trained_beside_its_teacher(pipe):
    transformer = Flux2Transformer2DModel.from_pretrained(BASE, subfolder="transformer")
    model = PixelFlux2.from_latent(transformer, Subspace.load(ADAPTER / "subspace.safetensors"))
    model.add_lora(128, dropout=0.0)
    load_adapter(model.eval(), ADAPTER)
    text, mask = pad_embeddings(pipe.encode_prompt(PROMPTS[0]))
    clamp = pipe.space.clamp_to_gamut
    expected = unipc(lambda x_t, sigma: model(x_t, sigma, text, mask), noise(), 3, SHIFT, transform_x_0=clamp)
    found = samples(pipe, guidance_scale=1.0, output_type="latent")
    assert largest_difference(found, expected) < 1e-4 * float(expected.abs().max())


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_theorem_1_untrained_pipeline_samples_as_the_latent_pipeline(guidance_scale):
    subspace = Subspace.load(ADAPTER / "subspace.safetensors")
    pixel = AsymFlux2KleinPipeline.from_pretrained(BASE, subspace=subspace)
    latent = Flux2KleinPipeline.from_pretrained(BASE)
    shift, steps, start = SHIFT, 10, noise(seed=3, width=96)
    pixel.scheduler = FlowMatchEulerDiscreteScheduler()
    # tau of a shifted sigma is another shift: 1 / s times as large
    latent.scheduler = FlowMatchEulerDiscreteScheduler(shift=shift / subspace.s)
    pixel.set_progress_bar_config(disable=True)
    latent.set_progress_bar_config(disable=True)
    texts = [embedding[None] for embedding in pixel_texts(pixel, PROMPTS[0], "")]
    common = {"num_inference_steps": steps, "guidance_scale": guidance_scale, "height": 64, "width": 96}
    x_0 = pixel(
        prompt_embeds=texts[0], negative_prompt_embeds=texts[1], latents=start, output_type="latent", shift=shift,
        orthogonal_guidance=False, clamp_to_gamut=False, **common,
    ).images  # fmt: skip
    z_1 = (patchify(start, PATCH) @ subspace.A).mT.unflatten(2, (16, 24))
    z_0 = latent(
        prompt_embeds=texts[0], negative_prompt_embeds=texts[1], latents=z_1, output_type="latent", **common
    ).images
    tokens = whitened(latent.vae, z_0)
    found = patchify(x_0, PATCH) @ subspace.A / subspace.s
    assert largest_difference(found, tokens) < 1e-4 * float(tokens.abs().max())
    outside = patchify(x_0, PATCH) - subspace.s * found @ subspace.A.T
    assert outside.abs().max() < 1e-3  # the low-rank model has nothing there


def pixel_texts(pixel, *prompts):
    pixel.defaults = AsymFlux2KleinPipeline.from_pretrained(BASE, adapter=ADAPTER, text_encoder=None).defaults
    return pixel.encode_prompt(prompts)


def whitened(vae, latents):
    """The stock pipeline's answer, before it undid the whitening."""
    tokens, bn = pack_latents(latents), vae.bn
    return (tokens - bn.running_mean) / torch.sqrt(bn.running_var + vae.config.batch_norm_eps)


def test_the_whitening_of_the_test_is_the_encoders():
    vae = Flux2KleinPipeline.from_pretrained(BASE).vae
    image = torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        latents = vae.encode(image).latent_dist.mode()
        assert largest_difference(whitened(vae, latents), encode_images(vae, image)) < 1e-5


@pytest.mark.parametrize(
    ("scheduler", "sampler"), [(FlowMatchEulerDiscreteScheduler, euler), (FlowMatchHeunDiscreteScheduler, heun)]
)
def test_a_scheduler_names_the_solver(pipe, scheduler, sampler):
    pipe.scheduler = scheduler()
    text, mask = pad_embeddings(pipe.encode_prompt(PROMPTS[0]))
    velocity = TextVelocity(pipe.transformer, (64, 64), list(text))
    expected = sampler(velocity, noise(), 3, SHIFT, transform_x_0=pipe.space.clamp_to_gamut)
    assert largest_difference(samples(pipe, guidance_scale=1.0, output_type="latent"), expected) < 1e-6
    pipe.scheduler = DDIMScheduler()
    with pytest.raises(ValueError, match="DDIMScheduler; allowed: UniPCMultistepScheduler"):
        samples(pipe)


@pytest.mark.parametrize(("height", "width"), [(32, 64), (64, 32), (48, 80), (96, 64)])
def test_aspect_ratios(pipe, height, width):
    start = noise(height=height, width=width)
    images = samples(pipe, height=height, width=width, latents=start)
    assert images.shape == (1, 3, height, width)
    assert 0 <= float(images.min())
    assert float(images.max()) <= 1
    turned = samples(pipe, height=width, width=height, latents=start.mT)
    assert largest_difference(images, turned.mT) > 0.05  # rows and columns are not mixed up


def test_a_batch_of_different_prompts_equals_one_by_one(pipe):
    start = noise(3)
    together = samples(pipe, PROMPTS, latents=start)
    for i, prompt in enumerate(PROMPTS):
        assert largest_difference(samples(pipe, prompt, latents=start[i : i + 1]), together[i : i + 1]) < 1e-4
    negatives = ["", "dark", "a photo"]
    together = samples(pipe, PROMPTS, latents=start, negative_prompt=negatives)
    alone = samples(pipe, PROMPTS[1], latents=start[1:2], negative_prompt=negatives[1])
    assert largest_difference(alone, together[1:2]) < 1e-4


def test_several_images_a_prompt_and_their_generators(pipe):
    generators = [seeded(seed) for seed in range(4)]
    images = samples(pipe, PROMPTS[:2], latents=None, generator=generators, num_images_per_prompt=2)
    assert images.shape[0] == 4
    third = samples(pipe, PROMPTS[1], latents=None, generator=seeded(2))
    assert largest_difference(third, images[2:3]) < 1e-4
    assert largest_difference(images[0], images[1]) > 0.05


def test_negative_prompts_and_embeddings_matter(pipe):
    plain = samples(pipe)
    assert largest_difference(samples(pipe, negative_prompt=PROMPTS[1]), plain) > 0.05
    assert largest_difference(samples(pipe, negative_prompt=PROMPTS[1], guidance_scale=1.0), plain) > 0.01
    text = pipe.encode_prompt([PROMPTS[0], ""])
    given = samples(pipe, None, prompt_embeds=text[:1], negative_prompt_embeds=text[1:])
    assert largest_difference(given, plain) < 1e-4
    assert largest_difference(samples(pipe, None, prompt_embeds=text[0][None]), plain) < 1e-4


def test_options_of_the_guidance_change_samples(pipe):
    plain = samples(pipe, guidance_scale=5.0)
    for change in (
        {"orthogonal_guidance": 1.0}, {"guidance_interval": (0.0, 0.5)}, {"clamp_to_gamut": False}, {"shift": 9.0},
    ):  # fmt: skip
        assert largest_difference(samples(pipe, guidance_scale=5.0, **change), plain) > 1e-3, change
    never = samples(pipe, guidance_scale=5.0, guidance_interval=(0.0, 0.0))
    assert largest_difference(never, samples(pipe, guidance_scale=1.0)) == 0


def test_the_orthogonal_part_is_the_models_by_default(pipe):
    """That of the toy's adapter is 0, that of a file without one is 1, as of the released model."""
    parts = dict(pipe.components)
    assert pipe.defaults.orthogonal_guidance == 0
    assert SamplingDefaults().orthogonal_guidance == 1
    orthogonal = AsymFlux2KleinPipeline(**parts, orthogonal_guidance=1.0)
    assert largest_difference(samples(orthogonal), samples(pipe, orthogonal_guidance=1.0)) == 0
    assert largest_difference(samples(pipe), samples(pipe, orthogonal_guidance=False)) == 0


def test_shift_grows_with_the_side_from_one_to_four_megapixels(pipe):
    defaults = pipe.defaults
    shifts = [round(defaults.shift_at(side, side), 3) for side in (64, 1024, 1536, 2048, 4096)]
    assert shifts == pytest.approx([SHIFT, SHIFT, 1.5 * SHIFT, 2 * SHIFT, 2 * SHIFT])
    assert math.isclose(defaults.shift_at(960, 1280), SHIFT * math.sqrt(960 * 1280) / 1024)


def test_callbacks_read_change_and_stop_sampling(pipe):
    seen = []

    def watch(pipeline, step, timestep, tensors):
        seen.append((step, timestep, sorted(tensors)))
        return {}

    names = ["latents", "prompt_embeds"]
    plain = samples(pipe, callback_on_step_end=watch, callback_on_step_end_tensor_inputs=names)
    assert [(step, kept) for step, _, kept in seen] == [(step, names) for step in range(3)]
    assert seen[0][1] == 1000
    assert seen[0][1] > seen[1][1] > seen[2][1] > 0

    def grey(pipeline, step, timestep, tensors):
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 2 else {}

    changed = samples(pipe, callback_on_step_end=grey, output_type="latent")
    assert changed.abs().max() == 0

    def stop(pipeline, step, timestep, tensors):
        pipeline._interrupt = True
        return {}

    ended = samples(pipe, callback_on_step_end=stop)
    assert ended.shape == plain.shape
    assert largest_difference(ended, plain) > 0.05
    assert largest_difference(samples(pipe), plain) == 0  # and the next call is whole again


def test_output_types(pipe):
    tensors = samples(pipe)
    arrays = samples(pipe, output_type="np")
    pictures = samples(pipe, output_type="pil")
    assert arrays.shape == (1, 64, 64, 3)
    assert largest_difference(torch.from_numpy(arrays).permute(0, 3, 1, 2), tensors) < 1e-6
    assert abs(np.asarray(pictures[0]) / 255 - arrays[0]).max() < 0.51 / 255
    latent = samples(pipe, output_type="latent")
    assert largest_difference((pipe.space.decode(latent) + 1) / 2, tensors) < 1e-6
    assert isinstance(pipe(PROMPTS[0], num_inference_steps=1, return_dict=False), tuple)


def test_reference_images_change_the_sample(pipe):
    picture = Image.linear_gradient("L").convert("RGB")
    plain = samples(pipe)
    with_one = samples(pipe, image=picture.resize((64, 64)), height=64, width=64)
    with_two = samples(pipe, image=[picture.resize((64, 64)), picture.resize((64, 80))], height=64, width=64)
    assert largest_difference(with_one, plain) > 1e-3
    assert largest_difference(with_two, with_one) > 1e-3
    followed = samples(pipe, image=picture.resize((90, 70)), latents=None, generator=seeded())
    assert followed.shape[-2:] == (68, 88)  # its own size, cut to whole patches
    with pytest.raises(ValueError, match="too small"):
        samples(pipe, image=picture.resize((32, 32)))


def test_padding_is_visible_to_models_trained_with_it(pipe):
    stock = Flux2KleinPipeline.from_pretrained(BASE, vae=None, dtype=torch.float32)
    with torch.no_grad():
        expected, _ = stock.encode_prompt(PROMPTS[0])
    padded = AsymFlux2KleinPipeline(**pipe.components, text_padding="max_length", height=64, width=64)
    assert largest_difference(padded.encode_prompt(PROMPTS[0])[0], expected[0]) < 1e-5
    alone = pipe.encode_prompt(PROMPTS[0])[0]
    assert len(expected[0]) == 512
    assert len(alone) < 512
    assert largest_difference(alone, expected[0, : len(alone)]) < 1e-4


def test_style_loras_are_added_on_top(pipe, tmp_path):
    layer = "transformer.transformer_blocks.0.attn.to_q"
    generator = seeded()
    save_file(
        {
            f"{layer}.lora_A.weight": torch.randn(4, 256, generator=generator),
            f"{layer}.lora_B.weight": torch.randn(256, 4, generator=generator),
        },
        tmp_path / "style.safetensors",
    )
    plain = samples(pipe)
    pipe.load_lora_weights(tmp_path / "style.safetensors", adapter_name="style")
    try:
        styled = samples(pipe)
        pipe.set_adapters(["style"], adapter_weights=[0.5])
        half = samples(pipe)
    finally:
        pipe.unload_lora_weights()
    assert largest_difference(styled, plain) > 0.05
    assert largest_difference(styled, half) > 0.01
    assert largest_difference(samples(pipe), plain) == 0  # the adapter itself cannot be taken off


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"height": 102}, "102x64 is not a multiple of 4"),
        ({"width": 6}, "64x6 is not a multiple of 4"),
        ({"prompt": None}, "either prompt or prompt_embeds"),
        ({"prompt": []}, "prompt is empty"),
        ({"prompt": PROMPTS, "latents": noise(2)}, "expected the starting noise"),
        ({"prompt": PROMPTS, "latents": None, "generator": [seeded()]}, "1 generators were given for 3"),
        ({"negative_prompt": ["a", "b"]}, "2 negative prompts were given for 1"),
        ({"guidance_scale": 0.5}, "scale is 0.5"),
        ({"guidance_interval": (0.9, 0.1)}, "interval is"),
        ({"num_inference_steps": 0}, "^num_inference_steps is 0"),
        ({"num_inference_steps": 2.5}, "^num_inference_steps is 2.5"),
        ({"height": 0}, "^height is 0"),
        ({"height": 64, "image": [Image.new("RGB", (64, 64))]}, "^width is missing: with a reference image"),
        ({"width": 64, "image": Image.new("RGB", (64, 64))}, "^height is missing: with a reference image"),
        ({"image": []}, r"^image is \[\]; it must be a PIL image"),
        ({"image": [None]}, r"^image\[0\] is None"),
        ({"image": "fox.png"}, "^image is 'fox.png'"),
        ({"prompt": [PROMPTS[0], None]}, r"^prompt\[1\] is None; it must be a text"),
        ({"prompt": 3}, "^prompt is 3"),
        ({"negative_prompt": [None]}, r"^negative_prompt\[0\] is None"),
        ({"prompt": None, "prompt_embeds": torch.zeros(5, 96)}, r"^prompt_embeds is a tensor .*embeds\[None\]"),
        ({"prompt": None, "prompt_embeds": [torch.zeros(1, 5, 96)]}, r"^prompt_embeds\[0\] is a tensor \(1, 5, 96\)"),
        ({"prompt": None, "prompt_embeds": torch.zeros(1, 5, 95)}, r"^prompt_embeds\[0\] .*must be \(T, 96\)"),
        ({"prompt": None, "prompt_embeds": torch.zeros(1, 0, 96)}, r"^prompt_embeds\[0\]"),
        ({"prompt": None, "prompt_embeds": [None]}, r"^prompt_embeds\[0\] is None"),
        ({"prompt": None, "prompt_embeds": torch.zeros(0, 5, 96)}, "^prompt_embeds is empty"),
        ({"negative_prompt_embeds": torch.zeros(5, 96)}, "^negative_prompt_embeds is a tensor"),
        ({"num_images_per_prompt": 0}, "^num_images_per_prompt is 0"),
        ({"num_images_per_prompt": None}, "^num_images_per_prompt is None"),
        ({"max_sequence_length": None}, "^max_sequence_length is None"),
        ({"guidance_interval": None}, "^guidance_interval is None"),
        ({"orthogonal_guidance": "half"}, "^orthogonal_guidance is 'half'"),
        ({"clamp_to_gamut": None}, "^clamp_to_gamut is None"),
        ({"output_type": None}, "^output_type is None; allowed: pil, np, pt, latent"),
        ({"generator": [None], "latents": None}, r"^generator is \[None\]"),
        ({"latents": "noise"}, "^latents are noise"),
        ({"callback_on_step_end_tensor_inputs": None}, "^callback_on_step_end_tensor_inputs has None; allowed"),
        ({"shift": -1.0}, "shift is -1"),
        ({"callback_on_step_end_tensor_inputs": ["latent"]}, "has latent; allowed: latents, prompt_embeds"),
    ],
)
def test_bad_arguments_are_named(pipe, options, named):
    with pytest.raises(ValueError, match=named):
        samples(pipe, **{"prompt": PROMPTS[0], **options})
