"""Two stages on the shipped toy."""

from functools import partial

import pytest
import torch
from torch.nn.functional import interpolate
from toy_pipeline import PROMPTS, largest_difference, noise, seeded

from asymflow.diffusers_pipeline import AsymFlux2KleinHiresPipeline, AsymFlux2KleinImg2ImgPipeline


@pytest.fixture(scope="module")
def hires(toy, embedded):
    pipeline = AsymFlux2KleinHiresPipeline.from_pipe(toy)
    pipeline.set_progress_bar_config(disable=True)
    return partial(pipeline, **embedded, height=64, width=48, output_type="pt")


def test_the_stages_are_text_to_image_and_image_to_image(hires, toy, embedded):
    """The generator's noise is first the first stage's: with strength 0, the image of the same seed is upscaled."""
    options = {**embedded, "output_type": "pt"}
    low = toy(**options, height=32, width=24, generator=seeded(5)).images
    upscaled = interpolate(low, (64, 48), mode="bicubic").clamp(0, 1)
    assert largest_difference(hires(generator=seeded(5), strength=0.0).images, upscaled) < 1e-3

    generator = seeded(5)
    noise(1, 32, 24, seed=5)
    torch.randn(1, 3, 32, 24, generator=generator)  # what the first stage took
    change = AsymFlux2KleinImg2ImgPipeline.from_pipe(toy)
    change.set_progress_bar_config(disable=True)
    (image,) = toy.image_processor.pt_to_numpy(upscaled)
    options["output_type"] = "pt"
    expected = change(
        **options, image=toy.image_processor.numpy_to_pil(image)[0], strength=0.5, generator=generator
    ).images
    found = hires(generator=seeded(5), strength=0.5).images
    assert found.shape == (1, 3, 64, 48)
    assert largest_difference(found, upscaled) > 0.02
    assert (found - expected).abs().mean() < 2e-3  # there the image between the stages has 8 bits


def test_an_image_does_not_depend_on_its_batch(hires, toy):
    text = toy.encode_prompt(PROMPTS[:2])
    together = hires(prompt_embeds=text, generator=[seeded(1), seeded(2)]).images
    alone = hires(prompt_embeds=text[1:], generator=[seeded(2)]).images
    assert largest_difference(together[1:], alone) < 1e-3


def test_each_stage_has_the_shift_of_its_size_and_steps_count_on(hires, toy):
    levels = []

    def watch(pipeline, step, timestep, tensors):
        levels.append((step, round(timestep / 1000, 4)))
        return {}

    hires(num_inference_steps=4, strength=0.5, shift_law="extrapolated", callback_on_step_end=watch)
    shifts = [toy.defaults.shift_at(*size, "extrapolated") for size in ((32, 24), (64, 48))]
    second = [shift * sigma / (1 + (shift - 1) * sigma) for shift, sigma in ((shifts[1], 0.5), (shifts[1], 0.25))]
    middle = shifts[0] * 0.5 / (1 + (shifts[0] - 1) * 0.5)
    assert [step for step, _ in levels] == list(range(6))
    assert levels[2][1] == pytest.approx(middle, abs=1e-3)
    assert [level for _, level in levels[4:]] == pytest.approx(second, abs=1e-3)


def test_an_interrupted_first_stage_ends_the_call(hires):
    steps = []

    def stop(pipeline, step, timestep, tensors):
        steps.append(step)
        pipeline._interrupt = True
        return {}

    assert hires(callback_on_step_end=stop).images.shape == (1, 3, 64, 48)
    assert steps == [0]


def test_sizes(hires):
    assert hires(height=None, width=None, upscale=1.5, num_inference_steps=1).images.shape == (1, 3, 96, 96)
    assert hires(upscale=100, num_inference_steps=1).images.shape == (1, 3, 64, 48)  # from a single patch


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"upscale": 0.5}, "^upscale is 0.5; it must be a number of at least 1"),
        ({"upscale": float("nan")}, "^upscale is nan"),
        ({"strength": 2}, "^strength is 2"),
        ({"height": 50}, "^height, width: the size 50x48"),
        ({"image": 3}, "^image is 3"),
    ],
)
def test_invalid_arguments(hires, options, message):
    def stop(*_):
        raise AssertionError("sampling began")

    with pytest.raises(ValueError, match=message):
        hires(callback_on_step_end=stop, **options)
