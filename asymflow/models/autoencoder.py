"""Images to the latent tokens of FLUX.2 and back, whitened by the autoencoder's batch-norm statistics."""

import torch
from diffusers import AutoencoderKLFlux2
from torch import Tensor

from asymflow.models.flux2 import pack_latents, unpack_latents


def _whitening(autoencoder: AutoencoderKLFlux2) -> tuple[Tensor, Tensor]:
    std = (autoencoder.bn.running_var + autoencoder.config.batch_norm_eps).sqrt()
    return autoencoder.bn.running_mean, std


@torch.no_grad()
def encode_images(autoencoder: AutoencoderKLFlux2, images: Tensor) -> Tensor:
    """Encode images to latent tokens: the mode of the posterior, whitened.

    Args:
        autoencoder: FLUX.2's autoencoder.
        images: sRGB images (B, 3, H, W) in [-1, 1].

    Returns:
        z_0 tokens (B, N, d), row by row.
    """
    mean, std = _whitening(autoencoder)
    tokens = pack_latents(autoencoder.encode(images).latent_dist.mode(), autoencoder.config.patch_size[0])
    return (tokens - mean) / std


@torch.no_grad()
def decode_latents(autoencoder: AutoencoderKLFlux2, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Decode latent tokens to images.

    Args:
        autoencoder: FLUX.2's autoencoder.
        tokens: Latent tokens (B, h w, d).
        grid: Rows and columns of tokens, (h, w).

    Returns:
        sRGB images (B, 3, H, W) in [-1, 1].
    """
    mean, std = _whitening(autoencoder)
    latents = unpack_latents(tokens * std + mean, grid, autoencoder.config.patch_size[0])
    return autoencoder.decode(latents).sample.clamp(-1, 1)
