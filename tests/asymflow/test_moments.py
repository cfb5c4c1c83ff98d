import pytest
import torch
from safetensors.torch import load, save

from asymflow.moments import ChannelMoments, PatchMoments


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
    assert moments.count == 0 and not moments.pixel_gram.any() and not moments.cross_gram.any()
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
