"""Edits by the shipped toy and its latent base."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw
from toy_pipeline import ADAPTER, BASE, PROMPTS

from pipelines.sample.edits import Edit
from pipelines.sample.parameters import SamplingParameters
from pipelines.sample.sampler import PipelineSampler
from pipelines.viz.image_grid import to_pil_images

PARAMETERS = SamplingParameters(height=24, width=36, steps=2, guidance=2.0, shift=3.55, orthogonal=False)
SIZE = (36, 24)


@pytest.fixture(scope="module")
def sampler():
    return PipelineSampler(str(BASE), str(ADAPTER))


@pytest.fixture(scope="module")
def photograph():
    across = Image.linear_gradient("L").rotate(90).resize(SIZE)
    return Image.merge("RGB", (across, Image.linear_gradient("L").resize(SIZE), Image.new("L", SIZE, 90)))


def mask():
    found = Image.new("L", SIZE)
    ImageDraw.Draw(found).rectangle((9, 5, 22, 15), fill=255)
    return found


def test_without_images_it_is_text_to_image(sampler):
    found = sampler.edit_pixel(PROMPTS[0], 3, PARAMETERS, Edit())
    (expected,) = to_pil_images(sampler.pixel(PROMPTS[:1], [3], PARAMETERS))
    assert np.abs(np.asarray(found, int) - np.asarray(expected, int)).max() <= 1


def test_pixels_outside_the_mask_are_the_images(sampler, photograph):
    found = sampler.edit_pixel(PROMPTS[0], 3, PARAMETERS, Edit(photograph, mask()))
    outside = np.asarray(mask()) == 0
    assert (np.asarray(found)[outside] == np.asarray(photograph)[outside]).all()
    assert (np.asarray(found)[~outside] != np.asarray(photograph)[~outside]).any()


@pytest.mark.parametrize("model", ["pixel", "latent"])
def test_every_part_of_an_edit_and_every_parameter_counts(sampler, photograph, model):
    sample, told = getattr(sampler, f"edit_{model}"), []
    edit = Edit(photograph, mask(), (Image.new("RGB", (20, 30), "green"),), strength=1.0)
    parameters = replace(PARAMETERS, steps=3)
    plain = sample(PROMPTS[0], 3, parameters, edit, lambda *step: told.append(step))
    assert [step for step, _ in told] == [0, 1, 2]
    assert plain.size == SIZE
    assert all((x_0 is None) == (model == "latent") for _, x_0 in told)
    assert sample(PROMPTS[0], 3, parameters, edit).tobytes() == plain.tobytes()
    others = [
        (PROMPTS[1], 3, parameters, edit),
        (PROMPTS[0], 4, parameters, edit),
        (PROMPTS[0], 3, replace(parameters, guidance=3.0), edit),
        (PROMPTS[0], 3, replace(parameters, negative_prompt="a photo"), edit),
        (PROMPTS[0], 3, parameters, replace(edit, strength=0.3)),
        (PROMPTS[0], 3, parameters, replace(edit, mask=None)),
        (PROMPTS[0], 3, parameters, replace(edit, references=())),
        (PROMPTS[0], 3, parameters, replace(edit, image=None, mask=None)),
    ]
    for other in others:
        assert sample(*other).tobytes() != plain.tobytes(), other[2:]


def test_strength_0_returns_the_image(sampler, photograph):
    assert (
        sampler.edit_pixel(PROMPTS[0], 0, PARAMETERS, Edit(photograph, strength=0.0)).tobytes() == photograph.tobytes()
    )
