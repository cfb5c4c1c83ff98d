"""Pictures to the latent tokens of FLUX.2 and back, whitened by the autoencoder's batch-norm statistics."""

import torch
from diffusers import AutoencoderKLFlux2
from torch import Tensor

from asymflow.models.flux2 import pack_latents, unpack_latents


def _whitening(autoencoder: AutoencoderKLFlux2) -> tuple[Tensor, Tensor]:
    std = (autoencoder.bn.running_var + autoencoder.config.batch_norm_eps).sqrt()
    return autoencoder.bn.running_mean, std


@torch.no_grad()
def encode_images(autoencoder: AutoencoderKLFlux2, images: Tensor) -> Tensor:
    """(B, 3, H, W) sRGB in [-1, 1] -> (B, N, d) latent tokens z_0 (the posterior's mode)."""
    mean, std = _whitening(autoencoder)
    tokens = pack_latents(autoencoder.encode(images).latent_dist.mode(), autoencoder.config.patch_size[0])
    return (tokens - mean) / std


@torch.no_grad()
def decode_latents(autoencoder: AutoencoderKLFlux2, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """(B, hw, d) latent tokens on a grid (h, w) -> (B, 3, H, W) sRGB in [-1, 1]."""
    mean, std = _whitening(autoencoder)
    latents = unpack_latents(tokens * std + mean, grid, autoencoder.config.patch_size[0])
    return autoencoder.decode(latents).sample.clamp(-1, 1)
