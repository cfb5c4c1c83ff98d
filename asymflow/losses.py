"""Training losses. Every loss is a mean over values (pixels for the perceptual loss), never a sum.

`reduction="mean"` returns one number; `reduction="none"` returns one number per sample (B,), whose mean is the former.
`sigma_floor` is the lower bound of sigma in the weight 1 / sigma^2 (`sigma_floor_loss`).
"""

import math

import torch
import torch.nn.functional as F

from .parameterization import recover_u
from .schedule import expand_sigma

GRANULARITIES = ("patch", "patch_channel")
_CHANNELS = 3

# Lower bound of the mean square of the teacher's error in lambda: it damps lambda where the teacher is nearly exact.
# The released code ("patch_channel") has one, the paper ("patch") does not.
_LAMBDA_FLOOR = {"patch": 0.0, "patch_channel": 1e-4}


def _reduce(values: torch.Tensor, reduction: str) -> torch.Tensor:
    if reduction == "none":
        return values.flatten(1).mean(dim=1)
    if reduction == "mean":
        return values.mean()
    raise ValueError(f"reduction is {reduction!r}; allowed: mean, none")


def flow_matching_loss(u: torch.Tensor, u_hat: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    """Return the mean squared velocity error (Eq. 2).

    Args:
        u: Target velocity (B, ...).
        u_hat: Predicted velocity of the same shape.
        reduction: `mean` or `none`.

    Returns:
        A scalar, or (B,) for `none`.

    Raises:
        ValueError: For another reduction.
    """
    return _reduce((u - u_hat).square(), reduction)


def asymmetric_loss(
    u_a: torch.Tensor,
    u_a_hat: torch.Tensor,
    sigma: torch.Tensor,
    A: torch.Tensor,
    sigma_floor: float = 5e-2,
    reduction: str = "mean",
) -> torch.Tensor:
    """Return the flow matching loss (Eq. 2) between the velocities recovered from u_a and u_a_hat (Eq. 5).

    x_t cancels: with d = u_a - u_a_hat, the loss is the mean square of P d + (I - P) d / max(sigma, sigma_floor).
    Rank 0 gives the x_0 error over sigma^2, which is JiT's loss; rank D gives the plain velocity error.

    Args:
        u_a: Target asymmetric velocity (B, N, D).
        u_a_hat: Predicted asymmetric velocity (B, N, D).
        sigma: Noise levels (B,).
        A: Basis (D, r).
        sigma_floor: Lower bound of sigma where it divides.
        reduction: `mean` or `none`.

    Returns:
        A scalar, or (B,) for `none`.

    Raises:
        ValueError: If the shapes do not fit, or for another reduction.
    """
    d = u_a - u_a_hat
    return _reduce(recover_u(d, torch.zeros_like(d), sigma, A, sigma_floor=sigma_floor).square(), reduction)


def omega(sigma: torch.Tensor, kappa: float | None = 0.3) -> torch.Tensor:
    """Return the fading schedule (1 - sigma)^2 / ((1 - sigma)^2 + (kappa sigma)^2) (Eq. 21).

    Args:
        sigma: Noise levels, any shape.
        kappa: Fading strength. None or negative: no fading, omega is 0 at every noise level.

    Returns:
        omega in [0, 1], with the shape of sigma.
    """
    if kappa is None or kappa < 0:
        return torch.zeros_like(sigma)
    signal = (1 - sigma).square()
    # 0 / 0 occurs only for kappa = 0 at sigma = 1, where there is no signal: omega is 0.
    return signal / (signal + (kappa * sigma).square()).clamp_min(torch.finfo(sigma.dtype).tiny)


def _grouped(tokens: torch.Tensor, granularity: str) -> torch.Tensor:
    """Reshape (B, N, D) to (B, N, G, D / G): one group per patch, or one per color channel."""
    if granularity not in GRANULARITIES:
        raise ValueError(f"granularity is {granularity!r}; allowed: {', '.join(GRANULARITIES)}")
    groups = 1 if granularity == "patch" else _CHANNELS
    if tokens.dim() != 3 or tokens.shape[-1] % groups:
        raise ValueError(
            f"tokens have shape {tuple(tokens.shape)}; {granularity} needs (B, N, D), D divisible by {groups}"
        )
    return tokens.unflatten(-1, (groups, -1))


@torch.no_grad()
def vr_lambda(d: torch.Tensor, d_low: torch.Tensor, granularity: str = "patch") -> torch.Tensor:
    """Return the control-variate weight lambda = clamp(<d, d_low> / ||d_low||^2, 0, 1) (Eq. 18), without gradient.

    lambda is 0 where d_low is 0. "patch_channel" bounds the mean square of d_low below by 1e-4, as the released code
    does.

    Args:
        d: Error of the student, x_0 - x_0_hat, tokens (B, N, D).
        d_low: Error of the teacher, x_0_low - x_0_low_hat, tokens (B, N, D).
        granularity: `patch` for one weight per patch, or `patch_channel` for one per patch and color channel, which
            needs tokens packed channel first.

    Returns:
        lambda (B, N, 1) or (B, N, 3), in at least float32.

    Raises:
        ValueError: For another granularity, or tokens that do not split into channels.
    """
    d, d_low = _grouped(d, granularity), _grouped(d_low, granularity)
    dtype = torch.promote_types(d.dtype, torch.float32)
    d, d_low = d.to(dtype), d_low.to(dtype)
    norm = d_low.square().mean(-1).clamp_min(max(_LAMBDA_FLOOR[granularity], torch.finfo(dtype).tiny))
    return ((d * d_low).mean(-1) / norm).clamp(0, 1)


def vr_loss(
    x_0: torch.Tensor,
    x_0_hat: torch.Tensor,
    x_0_low: torch.Tensor,
    x_0_low_hat: torch.Tensor,
    sigma: torch.Tensor,
    kappa: float | None = 0.3,
    sigma_floor: float = 5e-2,
    granularity: str = "patch",
    reduction: str = "mean",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the variance-reduced loss (Eqs. 7 and 19) and its control-variate weights.

    The loss is the mean square of x_0 - x_0_hat - (1 - omega) lam (x_0_low - x_0_low_hat), over
    max(sigma, sigma_floor)^2. The gradient flows only to x_0_hat.

    Args:
        x_0: Clean pixel tokens (B, N, D).
        x_0_hat: Prediction of the student (B, N, D).
        x_0_low: Lifted latent tokens x_0^L (B, N, D).
        x_0_low_hat: Lifted prediction of the teacher (B, N, D).
        sigma: Noise levels (B,).
        kappa: Fading strength of `omega`; None or negative: no fading.
        sigma_floor: Lower bound of sigma in the weight 1 / sigma^2.
        granularity: `patch` or `patch_channel`, as in `vr_lambda`.
        reduction: `mean` or `none`.

    Returns:
        (loss, lam): the loss, a scalar or (B,) for `none`; and lambda before fading, (B, N, 1) or (B, N, 3), the gate
        of `perceptual_loss`.

    Raises:
        ValueError: For another granularity or reduction, or tokens that do not split into channels.
    """
    d = x_0 - x_0_hat
    d_low = (x_0_low - x_0_low_hat).detach()
    lam = vr_lambda(d, d_low, granularity)
    kept = expand_sigma(1 - omega(sigma, kappa), lam) * lam
    residual = _grouped(d, granularity) - kept.unsqueeze(-1).to(d_low.dtype) * _grouped(d_low, granularity)
    weight = expand_sigma(sigma.clamp_min(sigma_floor).square().reciprocal(), residual)
    return _reduce(residual.square() * weight, reduction), lam


def perceptual_loss(
    distance_map: torch.Tensor,
    lam: torch.Tensor,
    sigma: torch.Tensor,
    kappa: float | None = 0.3,
    sigma_floor: float = 5e-2,
    patch_size: int | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    """Return the perceptual correction (Eq. 20): a distance per pixel, gated per patch and faded in at low noise.

    Three channel weights are joined into one gate by their root mean square. No gradient flows into the gate.

    Args:
        distance_map: Distance per pixel (B, 1, H, W), such as LPIPS with spatial output.
        lam: Weights (B, N, 1) or (B, N, 3) from `vr_loss`; patches row by row.
        sigma: Noise levels (B,).
        kappa: Fading strength of `omega`. None or negative: omega is 0, and so is this loss.
        sigma_floor: Lower bound of sigma in the weight 1 / sigma^2.
        patch_size: Side of a patch in pixels; None: the side of the N square patches that fill the map.
        reduction: `mean` or `none`.

    Returns:
        A scalar, or (B,) for `none`.

    Raises:
        ValueError: If lam and the map do not fit the patch size, or for another reduction.
    """
    batch, _, height, width = distance_map.shape
    if patch_size is None:
        patch_size = math.isqrt(height * width // lam.shape[1])
    rows, columns = height // patch_size, width // patch_size
    if height % patch_size or width % patch_size or lam.shape[:2] != (batch, rows * columns):
        raise ValueError(
            f"distance_map {tuple(distance_map.shape)} and lam {tuple(lam.shape)} do not fit patch_size "
            f"{patch_size}; expected lam ({batch}, {rows * columns}, 1 or 3) and sides that the patch divides"
        )
    gate = lam.detach().square().mean(dim=-1).sqrt().view(batch, 1, rows, columns)
    gate = gate.repeat_interleave(patch_size, dim=2).repeat_interleave(patch_size, dim=3)
    weight = omega(sigma, kappa) / sigma.clamp_min(sigma_floor).square()
    return _reduce(distance_map * gate * expand_sigma(weight, distance_map), reduction)


def total_loss(
    vr: torch.Tensor, perceptual: torch.Tensor, perceptual_weight: float = 0.2, loss_scale: float = 1.0
) -> torch.Tensor:
    """Return the total loss, loss_scale (L_VR + perceptual_weight L_P) (Eq. 22).

    Args:
        vr: L_VR of `vr_loss`, a scalar or (B,).
        perceptual: L_P of `perceptual_loss`, of the same shape.
        perceptual_weight: omega_P.
        loss_scale: Factor of the whole loss.

    Returns:
        The loss, of the same shape.
    """
    return loss_scale * (vr + perceptual_weight * perceptual)


def repa_loss(features: torch.Tensor, targets: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    """Return the representation alignment loss, 1 - cosine similarity (REPA, Yu et al. 2024).

    Args:
        features: Projected features of the network (B, N, C).
        targets: Features of the frozen encoder (B, N, C); they receive no gradient.
        reduction: `mean` or `none`.

    Returns:
        A scalar in [0, 2], or (B,) for `none`.

    Raises:
        ValueError: For another reduction.
    """
    return _reduce(1 - F.cosine_similarity(features, targets.detach(), dim=-1), reduction)
