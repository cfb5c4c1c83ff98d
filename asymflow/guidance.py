"""Classifier-free guidance, its orthogonal form (adaptive projected guidance, APG), and its interval."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .parameterization import x_0_from_u

Velocity = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Maps (x_t (B, ...), sigma (B,)) to u (B, ...)"""


@dataclass(frozen=True)
class Guidance:
    """Parameters that combine a conditional and an unconditional velocity.

    Raises:
        ValueError: On construction, for a scale below 1, or an interval or orthogonal part outside [0, 1].
    """

    scale: float
    """Guidance scale, at least 1; 1: no guidance"""
    orthogonal: float = True
    """Fraction of the guidance's component along the denoised sample that is removed: True, all (APG); False, none"""
    interval: tuple[float, float] = (0.0, 1.0)
    """Noise levels sigma, both ends included, at which guidance is applied"""

    def __post_init__(self) -> None:
        low, high = self.interval
        if not self.scale >= 1:
            raise ValueError(f"guidance scale is {self.scale}; it must be at least 1")
        if not 0 <= self.orthogonal <= 1:
            raise ValueError(f"orthogonal guidance is {self.orthogonal}; it must be a number in [0, 1]")
        if not 0 <= low <= high <= 1:
            raise ValueError(f"guidance interval is {list(self.interval)}; it must lie in [0, 1], lower end first")

    def at(self, sigma: torch.Tensor) -> bool:
        """Return whether guidance is applied at a noise level, so that the unconditional velocity is needed.

        Both ends of the interval are included. They are rounded to the type of sigma, at most float32, before they are
        compared: a float32 level 0.7 lies below the double 0.7, and a float64 level may be one bit off its decimal.

        Args:
            sigma: Noise levels (B,), the same for all samples.

        Returns:
            True if the scale is not 1 and sigma lies in the interval.
        """
        low, high = self.interval
        if self.scale == 1 or (low, high) == (0.0, 1.0):  # not from sigma: reading it stalls an accelerator
            return self.scale != 1
        dtype = torch.float32 if sigma.dtype == torch.float64 else sigma.dtype
        level, low, high = (torch.as_tensor(value).to(dtype).item() for value in (sigma[0], low, high))
        return low <= level <= high


def guided(conditional: Velocity, unconditional: Velocity, guidance: Guidance) -> Velocity:
    """Return the guided velocity; `unconditional` is evaluated only where guidance is applied.

    Args:
        conditional: Velocity with the prompt or class.
        unconditional: Velocity without it, or with a negative prompt.
        guidance: Scale, form and interval.

    Returns:
        The velocity for a sampler.
    """

    def velocity(x_t: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        u_cond = conditional(x_t, sigma)
        if not guidance.at(sigma):
            return u_cond
        return guide(u_cond, unconditional(x_t, sigma), x_t, sigma, guidance.scale, guidance.orthogonal)

    return velocity


def guide(
    u_cond: torch.Tensor,
    u_uncond: torch.Tensor,
    x_t: torch.Tensor,
    sigma: torch.Tensor,
    scale: float,
    orthogonal: float = True,
) -> torch.Tensor:
    """Return the guided velocity u_cond + (scale - 1) direction, with direction = u_cond - u_uncond.

    The orthogonal form (APG, Sadat et al. 2024) removes the component of the direction parallel to the denoised
    conditional sample x_0 = x_t - sigma u_cond, per sample over all its values; this component mostly raises contrast
    and saturation. The direction in x_0 space is -sigma times the one in u space, so the projection is the same.

    Args:
        u_cond: Conditional velocity (B, ...).
        u_uncond: Unconditional velocity of the same shape.
        x_t: Noisy sample of the same shape.
        sigma: Noise levels (B,).
        scale: Guidance scale; 1: no guidance.
        orthogonal: Fraction of the parallel component that is removed: True or 1, the orthogonal form; False or 0,
            plain guidance.

    Returns:
        u (B, ...).
    """
    direction = u_cond - u_uncond
    if orthogonal:
        x_0 = x_0_from_u(u_cond, x_t, sigma)
        axes = tuple(range(1, x_0.dim()))
        # A half-precision sum over a megapixel of values has no correct digits.
        dtype = torch.promote_types(direction.dtype, torch.float32)
        wide = x_0.to(dtype)
        norm = wide.square().sum(axes, keepdim=True).clamp_min(torch.finfo(dtype).tiny)
        along = (direction.to(dtype) * wide).sum(axes, keepdim=True) / norm
        direction = (direction.to(dtype) - orthogonal * along * wide).to(direction.dtype)
    return u_cond + (scale - 1) * direction
