import pytest
import torch
from safetensors.torch import load, save

from asymflow.moments import ChannelHistogram, ChannelMoments, PatchMoments
from asymflow.patches import patchify


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_channel_moments_are_those_of_all_pixels():
    images = torch.randn(6, 3, 5, 4) * torch.tensor([1.0, 2.0, 0.5]).view(3, 1, 1) + 0.3
    whole, left, right = ChannelMoments(), ChannelMoments(), ChannelMoments()
    whole.update(images)
    left.update(images[:2])
    right.update(images[2:])
    left.merge(right)
    pixels = images.double().transpose(0, 1).flatten(1)
    for moments in (whole, left, ChannelMoments.from_state_dict(load(save(left.state_dict())))):
        assert moments.count == 120
        assert torch.allclose(moments.mean, pixels.mean(1), atol=1e-12)
        assert torch.allclose(moments.std, pixels.std(1, correction=0), atol=1e-12)
        assert moments.shared_std == pytest.approx(float(pixels.var(1, correction=0).mean().sqrt()))


@pytest.mark.parametrize("latent_dim", [None, 4])
def test_merge_equals_one_pass(latent_dim):
    pixels = torch.randn(6, 5, 12)
    latents = None if latent_dim is None else torch.randn(6, 5, latent_dim)
    whole = PatchMoments(12, latent_dim)
    whole.update(pixels, latents)
    parts = PatchMoments(12, latent_dim)
    for rows in (slice(0, 1), slice(1, 4), slice(4, 6)):
        part = PatchMoments(12, latent_dim)
        part.update(pixels[rows], None if latents is None else latents[rows])
        parts.merge(PatchMoments.from_state_dict(load(save(part.state_dict()))))
    flat = pixels.double().reshape(-1, 12)
    assert parts.count == whole.count == 30
    assert parts.pixel_gram.dtype == torch.float64
    assert torch.allclose(whole.pixel_gram, flat.T @ flat, atol=1e-12)
    assert torch.allclose(parts.pixel_gram, whole.pixel_gram, atol=1e-12)
    if latents is not None:
        assert torch.allclose(whole.cross_gram, flat.T @ latents.double().reshape(-1, 4), atol=1e-12)
        assert torch.allclose(parts.cross_gram, whole.cross_gram, atol=1e-12)
        assert float(parts.latent_norm_sq) == pytest.approx(float(latents.double().square().sum()))


def test_bad_input_is_refused_and_leaves_the_sums_alone():
    moments = PatchMoments(6, 2)
    good = torch.randn(4, 6), torch.randn(4, 2)
    cases = [
        ((torch.full((4, 6), float("nan")), good[1]), "24 NaN or infinite"),
        ((good[0], good[1] / 0), "latent_tokens hold 8"),
        ((good[0][:, :5], good[1]), r"expected \(..., 6\)"),
        ((good[0], good[1][:3]), r"pair with \(4, 2\)"),
        ((good[0], None), "missing"),
    ]
    for arguments, words in cases:
        with pytest.raises(ValueError, match=words):
            moments.update(*arguments)
    assert moments.count == 0
    assert not moments.pixel_gram.any()
    assert not moments.cross_gram.any()
    with pytest.raises(ValueError, match="cannot merge"):
        moments.merge(PatchMoments(6))
    with pytest.raises(ValueError, match="given"):
        PatchMoments(6).update(*good)
    with pytest.raises(ValueError, match="NaN"):
        ChannelMoments().update(torch.full((1, 3, 2, 2), float("inf")))
    with pytest.raises(ValueError, match="expected"):
        ChannelMoments().update(torch.zeros(1, 4, 2, 2))
    with pytest.raises(ValueError, match="no pixels"):
        _ = ChannelMoments().std


def test_float32_products_keep_float64_sums():
    """Rounding stays at that of one product, however many updates are added."""
    exact, fast = PatchMoments(20, 7), PatchMoments(20, 7, products=torch.float32)
    for _ in range(50):
        pixels, latents = torch.randn(64, 20), torch.randn(64, 7)
        exact.update(pixels, latents)
        fast.update(pixels, latents)
    for name in ("pixel_gram", "cross_gram", "pixel_sum", "latent_sum", "latent_norm_sq"):
        a, b = getattr(exact, name), getattr(fast, name)
        assert b.dtype == torch.float64, name
        assert (a - b).norm() < 1e-6 * a.norm(), name


@pytest.mark.parametrize("patch_dim", [1, 3, 12, 768])
def test_gram_by_blocks_is_the_whole_product(patch_dim):
    pixels = torch.randn(40, patch_dim, dtype=torch.float64)
    moments = PatchMoments(patch_dim)
    moments.update(pixels)
    assert torch.allclose(moments.pixel_gram, pixels.T @ pixels, rtol=1e-13, atol=1e-12)
    assert torch.allclose(moments.pixel_sum, pixels.sum(0))


def test_random_patches_are_unbiased():
    """The mean over many draws of 4 of 16 patches, each counting 4 times, is the moments of all 16."""
    pixels, latents = torch.randn(16, 6, dtype=torch.float64), torch.randn(16, 2, dtype=torch.float64)
    whole, drawn = PatchMoments(6, 2), PatchMoments(6, 2)
    whole.update(pixels, latents)
    for _ in range(4000):
        chosen = torch.randperm(16)[:4]
        drawn.update(pixels[chosen], latents[chosen], weight=4)
    assert drawn.count == 4000 * whole.count
    for name in ("pixel_gram", "cross_gram", "pixel_sum", "latent_norm_sq"):
        expected, mean = getattr(whole, name), getattr(drawn, name) / 4000
        assert (mean - expected).abs().max() < 0.06 * max(1.0, float(expected.abs().max())), name


def test_moments_of_shifted_and_scaled_tokens():
    pixels, latents = torch.randn(50, 6, dtype=torch.float64), torch.randn(50, 2, dtype=torch.float64)
    scale, shift = torch.rand(6).double() + 0.5, torch.randn(6).double()
    moments, direct = PatchMoments(6, 2), PatchMoments(6, 2)
    moments.update(pixels, latents)
    direct.update(scale * pixels + shift, latents)
    changed = moments.affine(scale, shift)
    for name in ("pixel_gram", "cross_gram", "pixel_sum", "latent_sum", "latent_norm_sq"):
        assert torch.allclose(getattr(changed, name), getattr(direct, name), rtol=1e-12, atol=1e-10), name


def test_color_statistics_of_the_same_patches():
    images = torch.rand(4, 3, 8, 8, dtype=torch.float64)
    patches, channels = PatchMoments(48), ChannelMoments()
    patches.update(patchify(images, 4))
    channels.update(images)
    found = patches.channels()
    assert found.count == channels.count
    assert torch.allclose(found.mean, channels.mean)
    assert torch.allclose(found.std, channels.std)


def test_histogram_counts_every_pixel_once():
    images = torch.randn(3, 2, 9, 9)
    histogram, other = (ChannelHistogram((-1.0, 0.0), (1.0, 2.0), bins=8) for _ in range(2))
    histogram.update(images[:1])
    other.update(images[1:])
    histogram.merge(other.counts)
    assert histogram.counts.sum(1).tolist() == [3 * 81] * 2
    inside = ((images[:, 1] >= 0.5) & (images[:, 1] < 0.75)).sum()
    assert histogram.counts[1, 2] == inside
    assert histogram.counts[1, 0] == (images[:, 1] < 0.25).sum()


def test_overflow_is_named():
    moments = PatchMoments(2, products=torch.float32)
    with pytest.raises(ValueError, match="values whose squares overflow"):
        moments.update(torch.full((1, 2), 1e30))
    assert moments.count == 0
