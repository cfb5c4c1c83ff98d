"""Classifier-free guidance, its orthogonal form (adaptive projected guidance, APG), and its interval."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .parameterization import x_0_from_u

Velocity = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(x_t (B, ...), sigma (B,)) -> u (B, ...)"""


@dataclass(frozen=True)
class Guidance:
    """How two velocities become one. ValueError for a scale below 1 or an interval outside [0, 1]."""

    scale: float
    """1: none"""
    orthogonal: bool = True
    """Without its part along the denoised sample (APG)"""
    interval: tuple[float, float] = (0.0, 1.0)
    """Noise levels sigma, both ends included, at which there is guidance"""

    def __post_init__(self) -> None:
        low, high = self.interval
        if not self.scale >= 1:
            raise ValueError(f"guidance scale is {self.scale}; it must be at least 1")
        if not 0 <= low <= high <= 1:
            raise ValueError(f"guidance interval is {list(self.interval)}; it must lie in [0, 1], lower end first")

    def at(self, sigma: torch.Tensor) -> bool:
        """Return whether the unconditional velocity is needed at sigma (B,), the same for all samples.

        Both ends are included: they are rounded to the type of sigma, at most float32, before they are compared. A
        sampler's float32 level 0.7 lies below the double 0.7, and a float64 level may be one bit off its decimal.
        """
        low, high = self.interval
        if self.scale == 1 or (low, high) == (0.0, 1.0):  # sigma is not looked at: that would stall an accelerator
            return self.scale != 1
        dtype = torch.float32 if sigma.dtype == torch.float64 else sigma.dtype
        level, low, high = (torch.as_tensor(value).to(dtype).item() for value in (sigma[0], low, high))
        return low <= level <= high


def guided(conditional: Velocity, unconditional: Velocity, guidance: Guidance) -> Velocity:
    """The velocity that a sampler follows; `unconditional` is asked only where there is guidance."""

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
    orthogonal: bool = True,
) -> torch.Tensor:
    """Guided velocity u_cond + (scale - 1) direction, all (B, ...), sigma (B,).

    Plain: direction = u_cond - u_uncond. Orthogonal: the part of it parallel to the denoised conditional
    sample x_0 = x_t - sigma u_cond is removed, for each sample over all its values, since that part mostly
    raises contrast and saturation. (The direction in x_0 space is -sigma times the one in u space, so the
    projection is the same.)
    """
    direction = u_cond - u_uncond
    if orthogonal:
        x_0 = x_0_from_u(u_cond, x_t, sigma)
        axes = tuple(range(1, x_0.dim()))
        # Over a megapixel of values a half-precision sum is useless.
        dtype = torch.promote_types(direction.dtype, torch.float32)
        wide = x_0.to(dtype)
        norm = wide.square().sum(axes, keepdim=True).clamp_min(torch.finfo(dtype).tiny)
        along = (direction.to(dtype) * wide).sum(axes, keepdim=True) / norm
        direction = (direction.to(dtype) - along * wide).to(direction.dtype)
    return u_cond + (scale - 1) * direction
