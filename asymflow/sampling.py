"""Batches of samples, latent and pixel, from the same noise: sample i of a seed is the same in any batch."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from asymflow.guidance import Guidance, Velocity, guided
from asymflow.models.ddt import DdtFlux2
from asymflow.models.latent import backbone_of
from asymflow.models.lifted import PixelModel
from asymflow.models.text import pad_embeddings
from asymflow.samplers import noise_for, unipc

Predict = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Maps (x_t, sigma, text, mask) to a velocity"""


def pixel_noise(seed: int, indices: Iterable[int], height: int, width: int) -> Tensor:
    """Return the starting noise of pixel samples.

    Args:
        seed: Seed of the run.
        indices: Indices of the samples.
        height: Height in pixels.
        width: Width in pixels.

    Returns:
        Noise (B, 3, H, W), on the CPU.
    """
    return torch.stack([noise_for(seed, i, (3, height, width)) for i in indices])


def latent_noise(seed: int, indices: Iterable[int], grid: tuple[int, int], width: int = 128) -> Tensor:
    """Return the starting noise of latent samples.

    Args:
        seed: Seed of the run.
        indices: Indices of the samples.
        grid: Rows and columns of latent tokens, (h, w).
        width: Width of a latent token.

    Returns:
        Noise (B, hw, width), on the CPU.
    """
    return torch.stack([noise_for(seed, i, (grid[0] * grid[1], width)) for i in indices])


def text_guided(predict: Predict, text: list[Tensor], unconditional: Tensor, guidance: Guidance) -> Velocity:
    """Return the guided velocity for a batch of prompts.

    Args:
        predict: Maps (x_t, sigma, text (B, T, E), mask (B, T)) to a velocity.
        text: One embedding (T_i, E) per sample.
        unconditional: Embedding (T, E) of the empty or negative prompt.
        guidance: Scale, form and interval.

    Returns:
        The velocity for a sampler.
    """
    return guided(_under(predict, text), _under(predict, [unconditional] * len(text)), guidance)


def _under(predict: Predict, text: list[Tensor]) -> Velocity:
    padded, mask = pad_embeddings(text)
    return lambda x_t, sigma: predict(x_t, sigma, padded.to(x_t.device), mask.to(x_t.device))


def latent_velocity(transformer: Any, grid: tuple[int, int], references: Tensor | None = None) -> Predict:
    """Return the velocity of a latent model, evaluated in the transformer's own precision.

    Args:
        transformer: The latent transformer.
        grid: Rows and columns of latent tokens, (h, w).
        references: Latent tokens of R reference images per sample (B, R, hw, d); None: there are none.

    Returns:
        A function from (z_t (B, hw, d), sigma (B,), text, mask) to u_z (B, hw, d), float32.
    """
    backbone = backbone_of(transformer)
    dtype = transformer.get_submodule(backbone.text_input).weight.dtype

    given = () if references is None else (references.to(dtype),)

    def predict(z_t: Tensor, sigma: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        return backbone.run(transformer, z_t.to(dtype), sigma, text.to(dtype), grid, mask, *given).float()

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
    """Sample latent tokens with UniPC.

    Args:
        predict: Velocity of the latent model, such as `latent_velocity`.
        noise: Starting noise (B, hw, d).
        text: One embedding (T_i, E) per sample.
        unconditional: Embedding (T, E) of the empty or negative prompt.
        guidance: Scale, form and interval.
        steps: Number of steps.
        shift: Shift of the noise levels.

    Returns:
        z_0 tokens (B, hw, d).
    """
    return unipc(text_guided(predict, text, unconditional, guidance), noise, steps, shift=shift)


@torch.no_grad()
def sample_pixels(
    model: PixelModel | DdtFlux2,
    noise: Tensor,
    text: list[Tensor],
    unconditional: Tensor,
    guidance: Guidance,
    steps: int,
    shift: float,
    references: Tensor | None = None,
) -> Tensor:
    """Sample images with UniPC; each denoised sample is clamped to the gamut (App. B.2).

    Args:
        model: Pixel model.
        noise: Starting noise (B, 3, H, W).
        text: One embedding (T_i, E) per sample.
        unconditional: Embedding (T, E) of the empty or negative prompt.
        guidance: Scale, form and interval.
        steps: Number of steps.
        shift: Shift of the noise levels.
        references: R clean reference images per sample (B, R, 3, H, W) in normalized Oklab; None: there are none.

    Returns:
        sRGB images (B, 3, H, W) in [-1, 1].
    """
    space = model.subspace.space
    velocity = text_guided(partial(model, references=references), text, unconditional, guidance)
    x_0 = unipc(velocity, noise, steps, shift=shift, transform_x_0=space.clamp_to_gamut)
    return space.decode(x_0)
