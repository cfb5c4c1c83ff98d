"""Noise levels: the linear flow schedule alpha = 1 - sigma, its shift, training levels, and the calibration (tau, k).

`sigma` is the noise level and, on this schedule, also the time t.
"""

import math
from collections.abc import Sequence

import torch

SHIFT_LAWS = ("sqrt", "constant", "extrapolated")
"""Laws of `sampling_shift`"""


def expand_sigma(sigma: torch.Tensor | float, like: torch.Tensor) -> torch.Tensor:
    """Reshape sigma so that it broadcasts over `like`.

    Args:
        sigma: Noise levels (B,), (1,), or a scalar.
        like: Tensor (B, ...) that sigma is to broadcast over.

    Returns:
        sigma as (B, 1, ..., 1) or a scalar, on the device of `like`, with its own dtype.

    Raises:
        ValueError: If sigma is neither a scalar nor one value per sample.
    """
    sigma = torch.as_tensor(sigma, device=like.device)
    if sigma.dim() == 0:
        return sigma
    if sigma.dim() != 1 or sigma.shape[0] not in (1, like.shape[0]):
        raise ValueError(f"sigma has shape {tuple(sigma.shape)}; expected ({like.shape[0]},) or a scalar")
    return sigma.view(-1, *([1] * (like.dim() - 1)))


def calibrate(sigma: torch.Tensor, s: float | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the latent time tau and the input scale k for a pixel noise level (Eqs. 13-14).

    k = 1 / (s (1 - sigma) + sigma) and tau = k sigma keep the signal-to-noise ratio s (1 - sigma) / sigma of the
    projected pixels and give their noise the standard deviation tau.

    Args:
        sigma: Pixel noise levels in [0, 1], any shape.
        s: Scale of the subspace, above 0.

    Returns:
        (tau, k), both with the shape of sigma.

    Raises:
        ValueError: If s is a number <= 0. A tensor is not checked.
    """
    # A tensor is not checked: reading it would stall an accelerator at every call.
    if not isinstance(s, torch.Tensor) and s <= 0:
        raise ValueError(f"scale s is {s}; it must be above 0")
    k = 1 / (s * (1 - sigma) + sigma)
    return k * sigma, k


def shift_sigma(sigma: torch.Tensor, shift: float) -> torch.Tensor:
    """Move noise levels toward 1: shift sigma / (1 + (shift - 1) sigma).

    Args:
        sigma: Noise levels in [0, 1], any shape; 0 and 1 stay.
        shift: Above 0; 1 changes nothing.

    Returns:
        Shifted noise levels, of the same shape.

    Raises:
        ValueError: If shift is not above 0.
    """
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
    """Return the sampling shift for an image size.

    Args:
        pixels: Height times width of the image.
        base: Shift at `base_pixels` and below.
        max: Shift at `max_pixels` and above.
        law: `sqrt`: linear in sqrt(pixels) from `base` to `max`; `extrapolated`: the same line at every size;
            `constant`: `base` at every size.
        base_pixels: Pixels of the image that is sampled with `base`.
        max_pixels: Pixels of the image that is sampled with `max`.

    Returns:
        The shift for `shift_sigma`.

    Raises:
        ValueError: For another law, a size below one pixel, or an extrapolated shift that is not above 0.
    """
    if pixels < 1:
        raise ValueError(f"pixels is {pixels}; it must be at least 1")
    if law == "constant":
        return float(base)
    if law not in SHIFT_LAWS:
        raise ValueError(f"shift law is {law!r}; allowed: {', '.join(SHIFT_LAWS)}")
    low, high = math.sqrt(base_pixels), math.sqrt(max_pixels)
    fraction = (math.sqrt(pixels) - low) / (high - low)
    shift = float(base + (max - base) * fraction)
    if law == "extrapolated":
        if shift <= 0:
            raise ValueError(f"the extrapolated shift at {pixels} pixels is {shift:g}; give a shift above 0")
        return shift
    if fraction <= 0:
        return float(base)
    return shift if fraction < 1 else float(max)


def sample_sigma(
    n: int,
    shift: float = 1.0,
    mean: float = 0.0,
    std: float = 1.0,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Sample training noise levels: the sigmoid of a normal distribution, then shifted.

    Args:
        n: Number of levels.
        shift: Shift of `shift_sigma`.
        mean: Mean of the normal distribution.
        std: Standard deviation of the normal distribution.
        generator: Source of randomness; its device is the result's. None: torch's default generator.
        dtype: Type of the result.

    Returns:
        Noise levels (n,) in (0, 1).

    Raises:
        ValueError: If shift is not above 0.
    """
    device = generator.device if generator is not None else None
    normal = torch.randn(n, generator=generator, dtype=dtype, device=device)
    return shift_sigma(torch.sigmoid(mean + std * normal), shift)


def sampling_sigmas(
    steps: int, shift: float = 1.0, strength: float = 1.0, levels: Sequence[float] | None = None
) -> torch.Tensor:
    """Return the noise levels of a sampler: evenly spaced from 1 to 0, then shifted.

    Args:
        steps: Number of steps from pure noise, at least 1.
        shift: Shift of `shift_sigma`.
        strength: Fraction of the steps that are left, the last ones (rounded up), as in image-to-image.
        levels: Noise levels before the shift that replace the evenly spaced ones: `steps` falling numbers, without the
            final 0.

    Returns:
        Noise levels, float64 (steps left + 1,), falling to 0; the first is 1 if all steps are left.

    Raises:
        ValueError: If steps is below 1, shift is not above 0, strength is not in [0, 1], or the levels do not fall
            within (0, 1].
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; it must be at least 1")
    if not 0 <= strength <= 1:
        raise ValueError(f"strength is {strength}; it must be a number in [0, 1]")
    sigmas = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    if levels is not None:
        if len(levels) != steps:
            raise ValueError(f"sigmas has {len(levels)} noise levels; expected {steps}, without the final 0")
        sigmas = torch.tensor([*levels, 0.0], dtype=torch.float64)
        if not sigmas[0] <= 1 or not (sigmas.diff() < 0).all():
            raise ValueError(f"sigmas is {list(levels)}; noise levels must fall within (0, 1], without the final 0")
    left = math.ceil(steps * strength - 1e-9)  # 100 * 0.29 is above 29
    shifted = shift_sigma(sigmas, shift)
    shifted[sigmas == 1] = 1.0  # 0.3 / (1 + (0.3 - 1)) is above 1
    return shifted[steps - left :]
