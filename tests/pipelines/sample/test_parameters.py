import pytest
import torch

from asymflow.adapters import SamplingDefaults
from pipelines.core.config import validate
from pipelines.sample.config import SampleSettings
from pipelines.sample.parameters import SamplingParameters

PARAMETERS = SamplingParameters(height=32, width=48, steps=2, guidance=2.0, shift=3.6)


def test_noise_is_that_of_torchs_generator():
    found = PARAMETERS.noise([0, 7])
    assert torch.equal(found[1], torch.randn((3, 32, 48), generator=torch.Generator("cpu").manual_seed(7)))
    assert found.shape == (2, 3, 32, 48)


def settings(**changes):
    return validate(SampleSettings, {"base": "b", "adapter": "a", "prompts": "a red fox", **changes})


def test_defaults_are_the_models():
    defaults = SamplingDefaults(64, 96, 16, 2.0, 3.6, "none")
    found = settings().resolve(defaults)
    assert (found.height, found.width, found.steps, found.guidance, found.shift) == (64, 96, 16, 2.0, 3.6)
    found = settings(height=2048, width=2048, steps=4, guidance=1).resolve(defaults)
    assert (found.height, found.steps, found.guidance, found.shift) == (2048, 4, 1, 7.2)
    assert settings(shift=5).resolve(defaults).shift == 5


@pytest.mark.parametrize(
    ("given", "default", "expected"), [(None, 1.0, True), (None, 0.0, False), (None, 0.5, 0.5), (0, 1.0, False)]
)
def test_the_orthogonal_part_is_the_models_unless_given(given, default, expected):
    """Whole numbers are stored as true and false, so that protocols of earlier evaluations stay equal."""
    found = settings(orthogonal=given).resolve(SamplingDefaults(orthogonal_guidance=default)).orthogonal
    assert found == expected
    assert type(found) is type(expected)


def test_true_and_false_are_still_valid_settings():
    assert settings(orthogonal=True).orthogonal == 1
    assert settings(orthogonal=False).orthogonal == 0
