"""Real emoji on plain grounds, with known noise on top."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from asymflow.metrics.flat_ground import flat_ground_noise, plain_ground
from pipelines.toy.data import BACKGROUNDS, render_emoji

EMOJI = ["1F451", "1F34C", "1F98A", "2744", "1F691", "1F5FF"]  # crown, banana, fox, snowflake, ambulance, moai
SIDE = 64


def emoji(stem: str, ground: str) -> np.ndarray:
    """(H, W, 3) float, rendered large and reduced as curation does."""
    image = Image.open(io.BytesIO(render_emoji(stem, ground, 4 * SIDE)))
    return np.array(image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)).astype(float)


def to_tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.round().clip(0, 255).astype(np.uint8)).permute(2, 0, 1).contiguous()


def jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    return np.array(Image.open(buffer)).astype(float)


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    grounds = ["grey", "brown", "green", "brown", "grey", "green"]  # where noise is not cut off at 0 or 255
    return [emoji(stem, ground) for stem, ground in zip(EMOJI, grounds, strict=True)]


@pytest.mark.parametrize("sigma", [2.0, 5.0, 12.0, 25.0])
def test_added_noise_is_recovered(images, sigma):
    generator = np.random.default_rng(0)
    for pixels in images:
        found = flat_ground_noise(to_tensor(pixels + sigma * generator.standard_normal(pixels.shape)))
        assert found == pytest.approx(sigma, rel=0.1)


def test_clean_grounds_have_little_noise(images):
    for pixels in images:
        assert flat_ground_noise(to_tensor(pixels)) < 0.5


@pytest.mark.parametrize(("quality", "most"), [(95, 1.5), (75, 2.0)])
def test_jpegs_have_little(images, quality, most):
    for pixels in images:
        assert flat_ground_noise(to_tensor(jpeg(pixels, quality))) < most


def test_slow_gradients_are_part_of_the_ground(images):
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    vignette = (18 * x - 12 * y - 15 * (x * x + y * y))[..., None]
    generator = np.random.default_rng(1)
    for pixels in images:
        assert flat_ground_noise(to_tensor(pixels + vignette)) < 0.6
        noisy = pixels + vignette + 6 * generator.standard_normal(pixels.shape)
        assert flat_ground_noise(to_tensor(noisy)) == pytest.approx(6, rel=0.1)


def test_the_object_is_not_part_of_the_ground(images):
    """Noise on the object alone changes nothing; that the ground is most of what is plain is seen by its size."""
    generator = np.random.default_rng(2)
    for stem, pixels in zip(EMOJI, images, strict=True):
        tensor = to_tensor(pixels)
        ground = plain_ground(tensor)
        assert 0.1 < ground.mean() < 0.9, stem
        color = np.median(pixels[:3].reshape(-1, 3), axis=0)
        assert np.abs(pixels[ground] - color).max() < 10, stem
        plain = np.abs(pixels - color).max(axis=2) < 3
        noise = 40 * generator.standard_normal(pixels.shape) * ~plain[..., None]
        assert flat_ground_noise(to_tensor(pixels + noise)) < 1, stem


def test_an_object_that_reaches_over_a_part_of_the_border(images):
    pixels = images[0].copy()
    pixels[:, :12] = (200, 30, 30)
    pixels[:20] = (30, 30, 160)
    noisy = pixels + 4 * np.random.default_rng(3).standard_normal(pixels.shape)
    assert flat_ground_noise(to_tensor(noisy)) == pytest.approx(4, rel=0.1)


def test_patch_borders_count(images):
    """What a pixel model leaves between its patches: each a little lighter or darker than the next."""
    steps = np.kron(np.random.default_rng(4).choice([-6.0, 6.0], (8, 8)), np.ones((8, 8)))[..., None]
    assert all(flat_ground_noise(to_tensor(pixels + steps)) > 1.2 for pixels in images)


def test_a_texture_has_no_plain_ground():
    pixels = np.random.default_rng(5).integers(0, 256, (8, 8, 3)).astype(float)
    assert flat_ground_noise(to_tensor(np.kron(pixels, np.ones((8, 8, 1))))) is None


def test_white_and_black_grounds():
    for ground in ("white", "black"):
        assert ground in BACKGROUNDS
        assert flat_ground_noise(to_tensor(emoji("1F98A", ground))) < 0.5


def test_other_inputs_are_refused():
    with pytest.raises(ValueError, match=r"\(1, 3, 8, 8\) torch.uint8; expected \(3, H, W\) uint8"):
        flat_ground_noise(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
