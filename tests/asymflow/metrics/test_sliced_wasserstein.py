import pytest
import torch
import torch.nn.functional as F

from asymflow.metrics.sliced_wasserstein import (
    high_pass,
    image_sliced_wasserstein,
    patches_of,
    sliced_wasserstein,
)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_patches_are_cut_from_the_images():
    images = torch.arange(2 * 3 * 8 * 9, dtype=torch.float32).view(2, 3, 8, 9)
    patches = patches_of(images, 3, per_image=5, generator=torch.Generator().manual_seed(0))
    assert patches.shape == (10, 27)
    for number, patch in enumerate(patches):
        image, corner = images[number // 5], patch[0]
        row, column = (int(v) for v in (image[0] == corner).nonzero()[0])
        assert torch.equal(patch.view(3, 3, 3), image[:, row : row + 3, column : column + 3])
    with pytest.raises(ValueError, match="patch size is 9; images are 8x9"):
        patches_of(images, 9)


def test_distance_of_shifted_sets():
    # In one dimension the distance between a set and its shift by one standard deviation is 1.
    real = torch.randn(500, 1, dtype=torch.float64)
    assert sliced_wasserstein(real + real.std(correction=0), real) == pytest.approx(1)
    assert sliced_wasserstein(real[torch.randperm(500)], real) == pytest.approx(0, abs=1e-12)


def test_sets_of_different_size_are_compared_exactly():
    real, fake = torch.randn(12, 1, dtype=torch.float64), torch.randn(8, 1, dtype=torch.float64)
    # Repeating every element changes no distribution, and makes the sizes equal: 24 = 2 x 12 = 3 x 8.
    same_size = sliced_wasserstein(fake.repeat(3, 1), real.repeat(2, 1))
    assert sliced_wasserstein(fake, real) == pytest.approx(same_size)


def test_deterministic_and_bounded_by_chunks():
    fake, real = torch.randn(200, 12), 1.3 * torch.randn(300, 12)
    first = sliced_wasserstein(fake, real, projections=50, seed=3)
    assert first == sliced_wasserstein(fake, real, projections=50, seed=3)
    assert first == pytest.approx(sliced_wasserstein(fake, real, projections=50, seed=3, chunk=7))
    assert first != sliced_wasserstein(fake, real, projections=50, seed=4)
    with pytest.raises(ValueError, match=r"expected \(n, F\) and \(m, F\)"):
        sliced_wasserstein(fake, real[:, :5])


def test_high_pass_keeps_detail_only():
    flat = torch.full((1, 3, 16, 16), 0.7)
    assert high_pass(flat).abs().max() < 1e-6
    board = ((torch.arange(16).view(-1, 1) + torch.arange(16)) % 2).float().expand(1, 3, 16, 16)
    assert torch.allclose(high_pass(board), board - 0.5, atol=1e-6)  # the kernel has a zero at Nyquist


def test_blur_shows_in_the_high_pass_distance():
    real = torch.rand(6, 3, 32, 32) * 2 - 1
    other = torch.rand(6, 3, 32, 32) * 2 - 1
    blurred = F.avg_pool2d(F.pad(real, (1, 1, 1, 1), mode="reflect"), 3, stride=1)
    near, far = image_sliced_wasserstein(other, real), image_sliced_wasserstein(blurred, real)
    assert set(near) == {"raw", "high_pass"}
    assert far["high_pass"] > 5 * near["high_pass"]
    assert image_sliced_wasserstein(real, real) == {"raw": 0.0, "high_pass": 0.0}
