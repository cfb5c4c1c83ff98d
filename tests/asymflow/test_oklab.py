from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from asymflow.oklab import RELEASED, OklabSpace, oklab_to_srgb, srgb8_to_oklab, srgb_to_oklab

REFERENCE = load_file(Path(__file__).parents[1] / "data/oracles/oklab.safetensors")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_reference_values():
    assert (srgb_to_oklab(REFERENCE["image"]) - REFERENCE["oklab"]).abs().max() < 1e-5
    assert (RELEASED.encode(REFERENCE["image"]) - REFERENCE["normalized"]).abs().max() < 1e-5 * 3.5
    assert (RELEASED.decode(REFERENCE["wild_normalized"]) - REFERENCE["wild_image"]).abs().max() < 1e-5


def test_known_colors():
    white = srgb_to_oklab(torch.ones(3, 1, 1, dtype=torch.float64)).flatten()
    black = srgb_to_oklab(-torch.ones(3, 1, 1, dtype=torch.float64)).flatten()
    assert torch.allclose(white, torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64), atol=1e-6)
    assert torch.equal(black, torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("std", [0.16, (0.2, 0.05, 0.07)])
def test_round_trip(std):
    space = OklabSpace((0.56, 0.0, 0.01), std)
    images = torch.rand(2, 3, 16, 16, dtype=torch.float64) * 2 - 1
    images[0, :, 0, 0] = -1
    images[0, :, 0, 1] = 1
    encoded = space.encode(images)
    assert encoded.dtype == torch.float64
    assert encoded.shape == images.shape
    assert torch.allclose(space.decode(encoded), images, atol=1e-10)


def test_gamut_clamp():
    wild = 4 * torch.randn(2, 3, 16, 16, dtype=torch.float64)
    clamped = RELEASED.clamp_to_gamut(wild)
    assert torch.allclose(clamped, RELEASED.encode(RELEASED.decode(wild)), atol=1e-9)
    shown = RELEASED.decode(clamped, clamp=False)
    assert shown.min() > -1 - 1e-6
    assert shown.max() < 1 + 1e-6
    assert torch.allclose(RELEASED.clamp_to_gamut(clamped), clamped, atol=1e-5)
    inside = RELEASED.encode(torch.rand(1, 3, 8, 8, dtype=torch.float64) * 1.8 - 0.9)
    assert torch.allclose(RELEASED.clamp_to_gamut(inside), inside, atol=1e-10)
    assert oklab_to_srgb(5 * wild).abs().max() <= 1


@pytest.mark.parametrize("clamp", [True, False])
def test_decode_gradients_are_finite(clamp):
    x = torch.cat([torch.zeros(1, 3, 4, 4), REFERENCE["wild_normalized"][:1, :, :4, :4]])
    x[0, :, 0] = RELEASED.encode(-torch.ones(1, 3, 1, 4))[0, :, 0]  # black
    x[0, :, 1] = RELEASED.encode(torch.ones(1, 3, 1, 4))[0, :, 0]  # white
    x.requires_grad_(True)
    RELEASED.decode(x, clamp=clamp).square().sum().backward()
    assert torch.isfinite(x.grad).all()
    if not clamp:
        assert (x.grad[1].abs().sum(0) > 0).all()  # out-of-gamut colours still learn


def test_encode_gradients_are_finite():
    images = torch.tensor([-1.0, 0.0, 1.0, 1.5, -1.5]).view(1, 1, 1, 5).repeat(1, 3, 1, 1).requires_grad_(True)
    srgb_to_oklab(images).sum().backward()
    assert torch.isfinite(images.grad).all()


def test_space_is_plain_and_checked():
    assert OklabSpace(torch.tensor([0.5, 0, 0]), torch.tensor(0.25)) == OklabSpace((0.5, 0.0, 0.0), 0.25)
    for mean, std in [((0, 0), 1.0), ((0, 0, 0), 0.0), ((0, 0, float("nan")), 1.0), ((0, 0, 0), (1, 1))]:
        with pytest.raises(ValueError, match="OklabSpace"):
            OklabSpace(mean, std)
    with pytest.raises(ValueError, match="expected"):
        RELEASED.encode(torch.zeros(1, 4, 8, 8))


def test_lightness_is_continuous_at_black():
    greys = (torch.linspace(0, 6e-8, 200, dtype=torch.float64) - 1).expand(3, 1, 200)
    steps = srgb_to_oklab(greys)[0, 0].diff()
    assert (steps > 0).all()
    assert steps.max() < 1e-4


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 5, 3, 4, 16), (1, 3, 100, 1)])
def test_encode8_equals_encode(shape):
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    exact = srgb_to_oklab(images.double() / 127.5 - 1)
    assert (srgb8_to_oklab(images, torch.float64) - exact).abs().max() < 1e-12
    assert (srgb8_to_oklab(images) - exact).abs().max() < 1e-6
    space = OklabSpace((0.5, 0.1, -0.2), (0.2, 0.3, 0.4))
    assert (space.encode8(images) - space.encode(images.double() / 127.5 - 1)).abs().max() < 1e-5


def test_bytes_of_every_gray():
    greys = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)
    assert srgb8_to_oklab(greys)[0, 0, 0] == 0
    assert srgb8_to_oklab(greys)[0, 0, 255] == pytest.approx(1, abs=1e-6)
    with pytest.raises(ValueError, match="expected uint8"):
        srgb8_to_oklab(greys.float())


def test_numbers_are_kept_as_they_were_given():
    assert (RELEASED.mean, RELEASED.std) == ((0.56, 0.0, 0.01), 0.16)
