"""Batches of samples, latent and pixel, from the same noise: sample i of a seed is the same in any batch."""

from collections.abc import Callable, Iterable

import torch
from diffusers import Flux2Transformer2DModel
from torch import Tensor

from asymflow.guidance import Guidance, Velocity, guided
from asymflow.models.adapted import run_transformer
from asymflow.models.ddt import DdtFlux2
from asymflow.models.flux2 import PixelFlux2
from asymflow.models.text import pad_embeddings
from asymflow.samplers import noise_for, unipc

Predict = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(x_t, sigma, text, mask) -> velocity"""


def pixel_noise(seed: int, indices: Iterable[int], height: int, width: int) -> Tensor:
    """(B, 3, H, W)"""
    return torch.stack([noise_for(seed, i, (3, height, width)) for i in indices])


def latent_noise(seed: int, indices: Iterable[int], grid: tuple[int, int], width: int = 128) -> Tensor:
    """(B, hw, width)"""
    return torch.stack([noise_for(seed, i, (grid[0] * grid[1], width)) for i in indices])


def text_guided(predict: Predict, text: list[Tensor], unconditional: Tensor, guidance: Guidance) -> Velocity:
    """velocity(x_t, sigma) from predict(x_t, sigma, text, mask), one text embedding (T_i, E) a sample."""
    return guided(_under(predict, text), _under(predict, [unconditional] * len(text)), guidance)


def _under(predict: Predict, text: list[Tensor]) -> Velocity:
    padded, mask = pad_embeddings(text)
    return lambda x_t, sigma: predict(x_t, sigma, padded.to(x_t.device), mask.to(x_t.device))


def latent_velocity(transformer: Flux2Transformer2DModel, grid: tuple[int, int]) -> Predict:
    """The latent model's, in the transformer's own precision."""
    dtype = transformer.context_embedder.weight.dtype

    def predict(z_t: Tensor, sigma: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        return run_transformer(transformer, z_t.to(dtype), sigma, text.to(dtype), grid, mask).float()

    return predict


@torch.no_grad()
def sample_latents(
    predict: Predict,
    noise: Tensor,
    text: list[Tensor],
    unconditional: Tensor,
    guidance: Guidance,
    steps: int,
    shift: float,
) -> Tensor:
    """z_0 tokens (B, hw, d) from noise of that shape, one text embedding (T_i, E) each; UniPC."""
    return unipc(text_guided(predict, text, unconditional, guidance), noise, steps, shift=shift)


@torch.no_grad()
def sample_pixels(
    model: PixelFlux2 | DdtFlux2,
    noise: Tensor,
    text: list[Tensor],
    unconditional: Tensor,
    guidance: Guidance,
    steps: int,
    shift: float,
) -> Tensor:
    """(B, 3, H, W) sRGB in [-1, 1] from pixel noise; UniPC, clamped to the gamut at each step (App. B.2)."""
    space = model.subspace.space
    velocity = text_guided(model, text, unconditional, guidance)
    x_0 = unipc(velocity, noise, steps, shift=shift, transform_x_0=space.clamp_to_gamut)
    return space.decode(x_0)
