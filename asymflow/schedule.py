"""Noise levels: the linear flow schedule alpha = 1 - sigma, its shift, training times, and the calibration of
tau, k.

`sigma` is the noise level and, on this schedule, also the time t.
"""

import math

import torch


def expand_sigma(sigma: torch.Tensor | float, like: torch.Tensor) -> torch.Tensor:
    """Shape sigma (B,) or scalar so that it broadcasts over `like` (B, ...); dtype and device are kept.

    ValueError when sigma is neither a scalar nor one value for each sample.
    """
    sigma = torch.as_tensor(sigma, device=like.device)
    if sigma.dim() == 0:
        return sigma
    if sigma.dim() != 1 or sigma.shape[0] not in (1, like.shape[0]):
        raise ValueError(f"sigma has shape {tuple(sigma.shape)}; expected ({like.shape[0]},) or a scalar")
    return sigma.view(-1, *([1] * (like.dim() - 1)))


def calibrate(sigma: torch.Tensor, s: float | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Latent time tau and input scale k for pixel noise level sigma and lift scale s (Eqs. 13-14).

    k = 1 / (s (1 - sigma) + sigma), tau = k sigma; both have the shape of sigma. They keep the
    signal-to-noise ratio s (1 - sigma) / sigma of the projected pixels and give its noise the size tau.
    ValueError for a number s <= 0.
    """
    # A tensor is not looked at: reading it would stall an accelerator at every call.
    if not isinstance(s, torch.Tensor) and s <= 0:
        raise ValueError(f"scale s is {s}; it must be above 0")
    k = 1 / (s * (1 - sigma) + sigma)
    return k * sigma, k


def shift_sigma(sigma: torch.Tensor, shift: float) -> torch.Tensor:
    """Move noise levels towards 1: shift sigma / (1 + (shift - 1) sigma). 0, 1 and shift 1 change nothing."""
    if shift <= 0:
        raise ValueError(f"shift is {shift}; it must be above 0")
    return shift * sigma / (1 + (shift - 1) * sigma)


def sampling_shift(
    pixels: int,
    base: float = 17.0,
    max: float = 34.0,
    law: str = "sqrt",
    base_pixels: int = 1024 * 1024,
    max_pixels: int = 4 * 1024 * 1024,
) -> float:
    """Shift for sampling an image of `pixels` = height * width.

    law "sqrt": `base` at `base_pixels` growing to `max` at `max_pixels`, linear in sqrt(pixels), constant
    outside that range. law "constant": `base` at every size. ValueError for another law or a size below one
    pixel.
    """
    if pixels < 1:
        raise ValueError(f"pixels is {pixels}; it must be at least 1")
    if law == "constant":
        return float(base)
    if law != "sqrt":
        raise ValueError(f"shift law is {law!r}; allowed: sqrt, constant")
    low, high = math.sqrt(base_pixels), math.sqrt(max_pixels)
    fraction = (math.sqrt(pixels) - low) / (high - low)
    if fraction <= 0:
        return float(base)
    return float(base + (max - base) * fraction) if fraction < 1 else float(max)


def sample_sigma(
    n: int,
    shift: float = 1.0,
    mean: float = 0.0,
    std: float = 1.0,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Draw n training noise levels (n,): the sigmoid of a normal (mean, std), then shifted.

    They are on the device of the generator.
    """
    device = generator.device if generator is not None else None
    normal = torch.randn(n, generator=generator, dtype=dtype, device=device)
    return shift_sigma(torch.sigmoid(mean + std * normal), shift)


def sampling_sigmas(steps: int, shift: float = 1.0) -> torch.Tensor:
    """Noise levels of a sampler, float64 (steps + 1,): evenly spaced from 1 to 0, then shifted."""
    if steps < 1:
        raise ValueError(f"steps is {steps}; it must be at least 1")
    return shift_sigma(torch.linspace(1, 0, steps + 1, dtype=torch.float64), shift)
