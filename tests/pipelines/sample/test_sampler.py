"""Samplers of all kinds of models, alone and from the same noise."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from asymflow.adapters import SamplingDefaults, read_defaults, save_adapter
from asymflow.adapters.basis import SUBSPACE
from asymflow.models.ddt import DdtFlux2
from asymflow.models.flux2 import LatentFlux2
from asymflow.subspace import Subspace
from pipelines.core import storage
from pipelines.sample.parameters import SamplingParameters
from pipelines.sample.sampler import PipelineSampler, load_sampler, load_transformer
from pipelines.train.finetune.export_formats import convert

MODELS = Path(__file__).parents[3] / "models"
BASE, ADAPTER = str(MODELS / "toy_klein"), MODELS / "toy_asymflow"
PROMPTS, SEEDS = ["an emoji of strawberry on white", "a photo of grass"], [3, 4]
PARAMETERS = SamplingParameters(height=32, width=48, steps=2, guidance=2.0, shift=3.6)


@pytest.fixture(scope="module")
def subspace():
    return Subspace.load(ADAPTER / SUBSPACE)


@pytest.fixture(scope="module")
def load(subspace):
    return partial(load_sampler, base=BASE, subspace=subspace, defaults=read_defaults(ADAPTER), device="cpu")


def test_samples_do_not_depend_on_the_batch(load):
    both = PipelineSampler(BASE, str(ADAPTER))
    for model, sample in (("trained", both.pixel), ("latent", both.latent)):
        alone = load(model, adapter=ADAPTER)
        expected = sample(PROMPTS, SEEDS, PARAMETERS)
        torch.testing.assert_close(alone(PROMPTS, SEEDS, PARAMETERS), expected, rtol=0, atol=1e-5)


def test_the_lifted_model_is_the_latent_one_in_its_subspace(load, subspace):
    """Before training nothing is outside of the subspace: samples are combinations of the basis."""
    images = load("lifted", adapter=None)(PROMPTS, SEEDS, PARAMETERS)
    assert images.shape == (2, 3, 32, 48)
    assert images.abs().max() <= 1 + 1e-6
    trained = load("trained", adapter=ADAPTER)(PROMPTS, SEEDS, PARAMETERS)
    assert (images - trained).abs().max() > 0.1


@pytest.mark.parametrize("cls", [LatentFlux2, DdtFlux2])
def test_finetuned_baselines(load, subspace, tmp_path, cls):
    head = {"blocks": 1, "heads": 2, "head_width": 24} if cls is DdtFlux2 else {}
    model = cls.from_latent(load_transformer(BASE, "cpu"), subspace, **head)
    model.add_lora(4, 4, dropout=0.0)
    save_adapter(model, tmp_path)
    sample = load("trained", adapter=tmp_path)
    together = sample(PROMPTS, SEEDS, PARAMETERS)
    assert together.shape == (2, 3, 32, 48)
    assert torch.isfinite(together).all()
    for i in range(2):
        alone = sample(PROMPTS[i : i + 1], SEEDS[i : i + 1], PARAMETERS)
        torch.testing.assert_close(alone[0], together[i], rtol=0, atol=1e-4)
    if cls is LatentFlux2:  # untrained, it is the latent model (its modules and LoRA change nothing yet), in float16
        latent = load("latent", adapter=None)(PROMPTS, SEEDS, PARAMETERS)
        assert (latent - together).abs().mean() < 5e-3


def test_steps_are_reported(load):
    for model in ("trained", "latent"):
        told = []
        found = load(model, adapter=ADAPTER)(
            PROMPTS[:1], SEEDS[:1], PARAMETERS, lambda *step, told=told: told.append(step)
        )
        assert [step for step, _ in told] == [0, 1]
        previews = [x_0 for _, x_0 in told]
        if model == "trained":  # the last denoised image is the sample
            torch.testing.assert_close(previews[-1], found, rtol=0, atol=1e-3)
            assert (previews[0] - found).abs().max() > 0.05
        else:
            assert previews == [None, None]


def test_a_latent_model_without_a_subspace():
    with pytest.raises(ValueError, match="which needs a subspace: give a basis"):
        load_sampler("latent", BASE, None, None, SamplingDefaults(text_padding="none"), "cpu")


@pytest.fixture(scope="module")
def sampler():
    return PipelineSampler(BASE, str(ADAPTER))


@pytest.mark.parametrize("model", ["pixel", "latent"])
def test_an_image_depends_on_its_prompt_and_seed_alone(sampler, model):
    sample = getattr(sampler, model)
    together = sample([*PROMPTS, PROMPTS[0]], [0, 1, 1], PARAMETERS)
    assert together.shape == (3, 3, 32, 48)
    assert together.abs().max() <= 1.001
    for i, (prompt, seed) in enumerate([(PROMPTS[0], 0), (PROMPTS[1], 1), (PROMPTS[0], 1)]):
        assert (sample([prompt], [seed], PARAMETERS)[0] - together[i]).abs().max() < 1e-3
    assert (together[0] - together[2]).abs().max() > 0.1


def test_sampling_parameters_reach_both_models(sampler):
    # with two steps UniPC is Euler's method
    parameters = SamplingParameters(height=64, width=48, steps=3, guidance=2.0, shift=3.55)
    changes = [
        {"solver": "euler"},
        {"solver": "heun"},
        {"solver": "dpmsolver"},
        {"solver": "deis"},
        {"guidance": 1.0},
        {"shift": 9.0},
        {"negative_prompt": "a photo"},
    ]
    changes += [{"negative_prompt": "a photo"}, {"interval": (0.0, 0.5)}, {"orthogonal": False}]
    for model, own in (("pixel", {"clamp": False}), ("latent", {"latent_shift": 9.0})):
        plain = getattr(sampler, model)([PROMPTS[0]], [0], parameters)
        for change in [*changes, own]:
            other = getattr(sampler, model)([PROMPTS[0]], [0], replace(parameters, **change))
            assert (other - plain).abs().max() > 1e-3, (model, change)


def test_both_models_sample_similar_images(sampler):
    # the finetune keeps the latent model's composition: patch means are similar
    parameters = SamplingParameters(height=64, width=64, steps=8, guidance=2.0, shift=3.55)
    prompts, seeds = PROMPTS * 2, [0, 1, 2, 3]
    pixel, latent = (getattr(sampler, name)(prompts, seeds, parameters) for name in ("pixel", "latent"))
    pixel, latent = (torch.nn.functional.avg_pool2d(images, 16).flatten(1) for images in (pixel, latent))
    together = (pixel - latent).norm(dim=1)
    crossed = (pixel - latent.roll(1, 0)).norm(dim=1)
    assert (together < crossed).all()


def test_adapters_from_a_store_and_merged_pipelines(sampler, s3, tmp_path):
    expected = sampler.pixel(PROMPTS, [0, 1], PARAMETERS)
    storage.put_folder(Path(ADAPTER), f"{s3}/adapter")
    stored = PipelineSampler(BASE, f"{s3}/adapter")
    assert (stored.pixel(PROMPTS, [0, 1], PARAMETERS) - expected).abs().max() < 1e-4
    assert stored.adapter_sha256 == sampler.adapter_sha256
    assert len(stored.adapter_sha256) == 64
    merged = PipelineSampler(convert(f"{s3}/adapter", "merged", str(tmp_path), BASE, "float32"))
    assert (merged.pixel(PROMPTS, [0, 1], PARAMETERS) - expected).abs().max() < 1e-4
    assert merged.adapter_sha256 == ""
