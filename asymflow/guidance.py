"""Classifier-free guidance and its orthogonal form (adaptive projected guidance, APG)."""

import torch

from .parameterization import x_0_from_u


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
