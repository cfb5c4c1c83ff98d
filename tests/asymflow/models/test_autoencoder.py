import pytest
import torch
from diffusers import AutoencoderKLFlux2

from asymflow.models.autoencoder import decode_latents, encode_images
from asymflow.models.cells import pack_latents


@pytest.fixture(scope="module")
def autoencoder() -> AutoencoderKLFlux2:
    """Tiny, in float64, with batch-norm statistics away from 0 and 1."""
    torch.manual_seed(0)
    model = AutoencoderKLFlux2(
        block_out_channels=(4, 4), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=2, layers_per_block=1, norm_num_groups=2,
        sample_size=16,
    )  # fmt: skip
    model.bn.running_mean.normal_()
    model.bn.running_var.uniform_(0.5, 3)
    return model.double().eval()


def test_tokens_are_the_packed_mode_of_the_posterior_whitened(autoencoder):
    images = torch.rand(2, 3, 16, 24, dtype=torch.float64) * 2 - 1
    tokens = encode_images(autoencoder, images)
    assert tokens.shape == (2, 4 * 6, 2 * 2 * 2)
    with torch.no_grad():
        latents = pack_latents(autoencoder.encode(images).latent_dist.mode())
    variance = autoencoder.bn.running_var + autoencoder.config.batch_norm_eps
    torch.testing.assert_close(tokens * variance.sqrt() + autoencoder.bn.running_mean, latents)


def test_decoding_undoes_the_whitening_and_clamps(autoencoder):
    images = torch.rand(1, 3, 16, 24, dtype=torch.float64) * 2 - 1
    decoded = decode_latents(autoencoder, encode_images(autoencoder, images), (4, 6))
    with torch.no_grad():
        expected = autoencoder.decode(autoencoder.encode(images).latent_dist.mode()).sample
    torch.testing.assert_close(decoded, expected.clamp(-1, 1))
