from types import SimpleNamespace

import pytest
import torch

from asymflow.models.backbone import TokenGeometry
from asymflow.models.cells import pack_latents, unpack_latents
from asymflow.models.channel_normalized import ChannelNormalizedImages

MEAN, STD = [0.5, -1.0, 2.0], [2.0, 0.25, 4.0]


class Identity:
    """Autoencoder whose latents are the images, without or with an axis of frames."""

    device, dtype = torch.device("cpu"), torch.float64

    def __init__(self, dimensions: int):
        self.dimensions = dimensions

    def encode(self, images):
        assert images.ndim == self.dimensions
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: images))

    def decode(self, latents):
        assert latents.ndim == self.dimensions
        return SimpleNamespace(sample=latents)


@pytest.fixture(params=[False, True], ids=["image", "frames"])
def encoder(request):
    autoencoder, geometry = Identity(5 if request.param else 4), TokenGeometry(2, 12)
    return ChannelNormalizedImages(
        autoencoder, geometry, MEAN, STD, pack_latents, unpack_latents, side=2, frames=request.param
    )


def test_tokens_are_packed_normalized_channels(encoder):
    images = torch.rand(2, 3, 4, 6)
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (MEAN, STD))
    tokens = encoder.encode(images)
    assert tokens.dtype == torch.float64
    assert tokens.shape == (2, 6, encoder.token_width)
    torch.testing.assert_close(tokens, pack_latents((images.double() - mean) / std))


def test_decoding_undoes_encoding_and_clamps(encoder):
    images = torch.rand(2, 3, 4, 6) * 4 - 2
    decoded = encoder.decode(encoder.encode(images), (2, 3))
    assert decoded.dtype == torch.float32
    torch.testing.assert_close(decoded, images.clamp(-1, 1))
