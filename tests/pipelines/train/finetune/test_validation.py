"""Validation images of one process, on the shipped toy."""

from pathlib import Path

import pytest
import torch

from asymflow.adapters import SUBSPACE
from asymflow.models.flux2 import LatentFlux2, PixelFlux2
from asymflow.models.latent import load_transformer
from asymflow.subspace import Subspace
from pipelines.train.finetune.config import Validation
from pipelines.train.finetune.validation import Validator

pytestmark = pytest.mark.usefixtures("alone")
MODELS = Path(__file__).parents[4] / "models"
BASE = str(MODELS / "toy_klein")


class Held:
    """Prompts with random embeddings, with the interface of `Prompts`."""

    def captions(self):
        return ["a cat", "a dog"]

    def images(self):
        yield torch.zeros(3, 16, 24)

    def embeddings(self, source):
        return [torch.randn(length, 96, generator=torch.Generator().manual_seed(length)) for length in (3, 5)]

    def references(self):
        return None


class Edits(Held):
    """The same with reference images."""

    def references(self):
        return torch.rand(2, 1, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1


def make_validator(model_class, prompts):
    subspace = Subspace.load(MODELS / "toy_asymflow" / SUBSPACE)
    model = model_class.from_latent(load_transformer(BASE, torch.float32), subspace)
    model.add_lora(2, dropout=0.5)
    settings = Validation(steps=2, guidance=2.0)
    return Validator(settings, model.train(), prompts, None, torch.zeros(1, 96), BASE, torch.device("cpu"))


@pytest.fixture(params=[PixelFlux2, LatentFlux2])
def validator(request):
    return make_validator(request.param, Held())


def test_images_do_not_depend_on_dropout_and_the_training_goes_on(validator):
    first, state = validator.sample_images(), torch.get_rng_state()
    again = validator.sample_images()
    assert first.tobytes() == again.tobytes()
    assert validator.model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_the_orthogonal_part_of_the_guidance_is_a_setting(validator):
    first = validator.sample_images()
    validator.settings = validator.settings.model_copy(update={"orthogonal": 0.0})
    assert validator.sample_images().tobytes() != first.tobytes()


def test_the_base_stays_while_the_average_changes(validator):
    noise = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    model, text = validator.model.eval(), validator.text
    with torch.no_grad():
        base, before = validator._base(noise, text, None), validator._now(noise, text, None)
        if isinstance(model, LatentFlux2):  # pixel models are clamped to the gamut at each step
            torch.testing.assert_close(before, base, rtol=0, atol=1e-3)
        for parameter in model.trainable().values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        torch.testing.assert_close(validator._base(noise, text, None), base, rtol=0, atol=1e-5)
        assert (validator._now(noise, text, None) - before).abs().max() > 0.02


@pytest.mark.parametrize("model_class", [PixelFlux2, LatentFlux2])
def test_base_and_average_see_the_references_which_are_shown(model_class):
    plain, edits = (make_validator(model_class, prompts()) for prompts in (Held, Edits))
    noise = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for validator in (plain, edits):
            validator.model.eval()
        for sample, other in ((plain._base, edits._base), (plain._now, edits._now)):
            without, found = sample(noise, plain.text, None), other(noise, edits.text, edits.references)
            assert (found - without).abs().max() > 0.01
            torch.testing.assert_close(other(noise, edits.text, None), without, rtol=0, atol=1e-5)
    assert edits.sample_images().width > plain.sample_images().width
