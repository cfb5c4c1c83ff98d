import numpy as np
import pytest
import torch
from PIL import Image

from asymflow.metrics.image_rules import ROUNDINGS, prepare, to_uint8


def smooth(side, count=1, seed=0):
    low = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * 400 - 70
    return torch.nn.functional.interpolate(low, (side, side), mode="bicubic").clamp(0, 255).to(torch.uint8)


def test_the_rules_are_those_of_samples_between_minus_one_and_one():
    x = torch.linspace(-1.2, 1.2, 998, dtype=torch.float64)  # none at a boundary, where float64 could go either way
    levels = 127.5 * (x + 1)
    formulas = {
        "truncate_half_up": (127.5 * x + 128).clamp(0, 255).trunc(),
        "truncate": (127.5 * (x + 1)).clamp(0, 255).trunc(),
        "round": (127.5 * (x + 1)).clamp(0, 255).round(),
    }
    assert set(formulas) == set(ROUNDINGS)
    for rule, expected in formulas.items():
        assert torch.equal(to_uint8(levels, rule).double(), expected)


def test_roundings_differ_at_their_boundaries():
    levels = torch.tensor([-9.0, 0.0, 0.4, 0.5, 0.6, 1.5, 2.5, 254.4, 254.5, 255.0, 300.0])
    assert to_uint8(levels, "truncate_half_up").tolist() == [0, 0, 0, 1, 1, 2, 3, 254, 255, 255, 255]
    assert to_uint8(levels, "truncate").tolist() == [0, 0, 0, 0, 0, 1, 2, 254, 254, 255, 255]
    assert to_uint8(levels, "round").tolist() == [0, 0, 0, 0, 1, 2, 2, 254, 254, 255, 255]


@pytest.mark.parametrize("side", [40, 400])
def test_an_area_of_one_level_keeps_it(side):
    images = torch.arange(0, 256, 15, dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, 3, side, side)
    for rule in ROUNDINGS:
        assert torch.equal(prepare(images, "bicubic", rule), images[:, :, :1, :1].expand(-1, -1, 299, 299))


@pytest.mark.parametrize("side", [256, 512, 1024])
def test_bicubic_is_pillows_with_antialiasing(side):
    noise = torch.randint(80, 176, (1, 3, side, side), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    images = torch.cat([smooth(side) // 4 + 90, noise])  # Pillow would also clamp between its two passes
    found = prepare(images, "bicubic", "truncate_half_up")
    for image, mine in zip(images, found, strict=True):
        resized = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((299, 299), Image.Resampling.BICUBIC)
        difference = np.asarray(resized).astype(int) - mine.permute(1, 2, 0).numpy()
        # as it rounds there
        assert abs(difference).max() <= 1
        assert abs(difference.mean()) < 0.02
    lower = prepare(images, "bicubic", "truncate")
    assert ((found - lower) <= 1).all()
    assert (found.double() - lower.double()).mean() == pytest.approx(0.5, abs=0.06)


def test_a_crop_is_the_middle():
    images = torch.zeros(1, 3, 1024, 302, dtype=torch.uint8)
    images[:, :, 362:661, 1:300] = 9
    cropped = prepare(images, "centre_crop", "round")
    assert cropped.shape == (1, 3, 299, 299)
    assert (cropped == 9).all()


def test_images_of_the_right_size_are_not_resized():
    images = smooth(299)
    assert torch.equal(prepare(images, "bicubic", "truncate"), images)
    assert torch.equal(prepare(smooth(256), "none", "truncate"), smooth(256))


def test_each_image_is_resized_alone():
    images = smooth(320, count=3)
    together = prepare(images, "bicubic", "truncate")
    assert torch.equal(together, torch.cat([prepare(image[None], "bicubic", "truncate") for image in images]))


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: prepare(torch.zeros(1, 3, 298, 400, dtype=torch.uint8), "centre_crop", "round"), "too small"),
        (lambda: prepare(torch.zeros(1, 3, 300, 400, dtype=torch.uint8), "none", "round"), "distorted"),
        (lambda: prepare(torch.zeros(1, 3, 300, 300), "none", "round"), "expected uint8"),
        (lambda: prepare(torch.zeros(1, 300, 300, 3, dtype=torch.uint8), "none", "round"), "expected uint8"),
        (lambda: prepare(torch.zeros(1, 3, 300, 300, dtype=torch.uint8), "lanczos", "round"), "'lanczos' is not"),
        (lambda: to_uint8(torch.zeros(3), "ceil"), "'ceil' is not a rule"),
        (lambda: to_uint8(torch.full((3,), torch.nan), "round"), "NaN"),
    ],
)
def test_invalid_arguments_are_refused(call, named):
    with pytest.raises(ValueError, match=named):
        call()


def test_other_shapes_are_squashed_as_the_papers_evaluation_does():
    ramp = torch.arange(200, dtype=torch.uint8).view(1, 1, 1, 200).expand(2, 3, 640, 200)
    found = prepare(ramp, "bicubic", "truncate_half_up").double()
    assert found.shape == (2, 3, 299, 299)
    assert torch.equal(found[..., :1, :].expand_as(found), found)
    expected = (torch.arange(299, dtype=torch.float64) + 0.5) * 200 / 299 - 0.5  # where a pixel's centre lies
    assert (found[0, 0, 0, 5:-5] - expected[5:-5]).abs().max() < 0.51  # and half a level of rounding
