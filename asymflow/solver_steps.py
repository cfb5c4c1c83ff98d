"""Pieces that all samplers share: noise levels, the denoised sample, and the callback."""

from collections.abc import Callable

import torch

from .guidance import Velocity
from .parameterization import x_0_from_u
from .schedule import sampling_sigmas

Transform = Callable[[torch.Tensor], torch.Tensor] | None
"""Replaces each denoised sample x_0 (B, ...), such as by the gamut clamp (App. B.2); the velocity follows it"""
Callback = Callable[[int, torch.Tensor], torch.Tensor | None] | None
"""Called with (step, x_t) after each step, step = 0 .. steps - 1; a tensor that it returns replaces x_t"""


def levels(steps: int, shift: float, sigmas: torch.Tensor | None) -> torch.Tensor:
    """Return the noise levels of a sampler.

    Args:
        steps: Number of steps.
        shift: Shift of the noise levels.
        sigmas: Noise levels (steps + 1,) that replace those of `steps` and `shift`, or None.

    Returns:
        Noise levels, float64, falling to 0.
    """
    return sampling_sigmas(steps, shift) if sigmas is None else sigmas


def denoise(velocity: Velocity, x_t: torch.Tensor, sigma: torch.Tensor, transform_x_0: Transform) -> torch.Tensor:
    """Return the denoised sample at x_t, transformed.

    Args:
        velocity: Maps (x_t, sigma (B,)) to u.
        x_t: Noisy samples (B, ...).
        sigma: Noise level, a scalar.
        transform_x_0: Applied to the denoised sample; None: not.

    Returns:
        x_0 (B, ...).
    """
    batch_sigma = sigma.to(device=x_t.device, dtype=x_t.dtype).expand(x_t.shape[0])
    x_0 = x_0_from_u(velocity(x_t, batch_sigma), x_t, batch_sigma)
    return x_0 if transform_x_0 is None else transform_x_0(x_0)


def after_step(callback: Callback, step: int, x_t: torch.Tensor) -> torch.Tensor:
    """Call the callback, if there is one.

    Args:
        callback: The callback, or None.
        step: Number of the step.
        x_t: Noisy samples (B, ...) after the step.

    Returns:
        x_t, or the callback's replacement.
    """
    changed = None if callback is None else callback(step, x_t)
    return x_t if changed is None else changed
