from types import SimpleNamespace

import pytest
import torch

from pipelines.core.step import StepFailed
from pipelines.evaluate.config import Bootstrap
from pipelines.evaluate.measures import MeasureInput
from pipelines.evaluate.prompts import Prompt, list_generations
from pipelines.evaluate.set_measures import FlatGround, SpectrumDistance


def spectra_of(side: int):
    """Return spectra of images with sides of so many pixels."""
    scores = SimpleNamespace(features=lambda name: [torch.rand(4, side // 2)])
    return SimpleNamespace(scores={"spectrum": scores})


def test_spectra_of_other_sizes_are_refused_in_words():
    evaluated = SimpleNamespace(real_images=lambda why: spectra_of(32), made=spectra_of(64))
    with pytest.raises(StepFailed, match="real images of 32 and sampled ones of 64 pixels a side .*sampling.height"):
        SpectrumDistance("spectrum").rows(evaluated)


def test_grain_is_that_of_emoji_on_plain_grounds_alone():
    """Two repeats of three prompts; the photograph and a texture without a ground are left out."""
    noise = torch.randn(6, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    levels = torch.tensor([2.0, 4.0, 30.0, 30.0, 6.0, 0.0])
    images = 128 + levels[:, None, None, None] * noise
    images[5] = 255 * torch.rand(3, 6, 6).repeat_interleave(8, 1).repeat_interleave(8, 2)
    texts = ["an emoji of a fox on green", "a photo of grass, wide view", "an emoji of a sock on light blue"]
    generations = list_generations([Prompt(str(i), text) for i, text in enumerate(texts)], 2)
    made = SimpleNamespace(tensor=images.round().clamp(0, 255) / 127.5 - 1)
    (row,) = FlatGround("flat_ground").rows(MeasureInput(generations, 2, made, None, None, Bootstrap()))
    assert row["value"] == pytest.approx((3 + 6) / 2, rel=0.05)
    assert row["low"] < row["value"] < row["high"]
    assert (row["prompts"], row["pictures"]) == (2, 3)
    others = list_generations([Prompt(str(i), "a photo of grass") for i in range(3)], 2)
    assert FlatGround("flat_ground").rows(MeasureInput(others, 2, made, None, None, Bootstrap())) == []
