"""Training losses. Every loss is a mean over values (pixels, for the perceptual one), never a sum.

`reduction="mean"` returns one number, `reduction="none"` one number a sample (B,), whose mean it is; the
latter serves curves of the loss over noise levels. `sigma_floor` is the floor of the weight 1 / sigma^2
(`sigma_floor_loss`).
"""

import math

import torch
import torch.nn.functional as F

from .parameterization import recover_u
from .schedule import expand_sigma

GRANULARITIES = ("patch", "patch_channel")
_CHANNELS = 3

# Floor of the mean square of the teacher's deviation in lambda. The released code, whose granularity is
# "patch_channel", has one; the paper, with "patch", has none. It damps lambda where the teacher is nearly
# exact.
_LAMBDA_FLOOR = {"patch": 0.0, "patch_channel": 1e-4}


def _reduce(values: torch.Tensor, reduction: str) -> torch.Tensor:
    if reduction == "none":
        return values.flatten(1).mean(dim=1)
    if reduction == "mean":
        return values.mean()
    raise ValueError(f"reduction is {reduction!r}; allowed: mean, none")


def flow_matching_loss(u: torch.Tensor, u_hat: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    """Mean squared velocity error (Eq. 2); any equal shapes (B, ...)."""
    return _reduce((u - u_hat).square(), reduction)


def asymmetric_loss(
    u_a: torch.Tensor,
    u_a_hat: torch.Tensor,
    sigma: torch.Tensor,
    A: torch.Tensor,
    sigma_floor: float = 5e-2,
    reduction: str = "mean",
) -> torch.Tensor:
    """Flow matching (Eq. 2) between the velocities recovered from u_a and u_a_hat (Eq. 5), tokens (B, N, D).

    x_t cancels: with d = u_a - u_a_hat it is the mean square of P d + (I - P) d / max(sigma, sigma_floor). Rank 0 gives
    the x_0 error over sigma^2, which is JiT's loss, rank D the plain velocity error.
    """
    d = u_a - u_a_hat
    return _reduce(recover_u(d, torch.zeros_like(d), sigma, A, sigma_floor=sigma_floor).square(), reduction)


def omega(sigma: torch.Tensor, kappa: float | None = 0.3) -> torch.Tensor:
    """Fading schedule (1 - sigma)^2 / ((1 - sigma)^2 + (kappa sigma)^2) in [0, 1], shape of sigma (Eq. 21).

    kappa None or negative means no fading: omega is 0 at every noise level.
    """
    if kappa is None or kappa < 0:
        return torch.zeros_like(sigma)
    signal = (1 - sigma).square()
    # 0 / 0 only for kappa = 0 at sigma = 1, where there is no signal: 0.
    return signal / (signal + (kappa * sigma).square()).clamp_min(torch.finfo(sigma.dtype).tiny)


def _grouped(tokens: torch.Tensor, granularity: str) -> torch.Tensor:
    """(B, N, D) to (B, N, G, D / G): all values of a patch together, or one group a colour channel."""
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
    """Control-variate weight lambda = clamp(<d, d_low> / ||d_low||^2, 0, 1) (Eq. 18), no gradient.

    d = x_0 - x_0_hat and d_low = x_0_low - x_0_low_hat, tokens (B, N, D). One weight a patch, (B, N, 1), or
    one a patch and colour channel, (B, N, 3), for tokens packed channel first. Where d_low is zero the weight
    is 0. "patch_channel" also floors the mean square of d_low at 1e-4, as the released code does.
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
    """Variance-reduced loss (Eqs. 7 and 19) and its weights (loss, lam); all tokens (B, N, D), sigma (B,).

    The squared residual x_0 - x_0_hat - (1 - omega) lam (x_0_low - x_0_low_hat), over max(sigma,
    sigma_floor)^2. Gradient flows to x_0_hat alone. `lam` is before fading, as the perceptual term wants it;
    kappa None or negative: no fading.
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
    """Perceptual correction (Eq. 20): the pixelwise distance, gated by patch and faded in at low noise.

    distance_map (B, 1, H, W) is LPIPS with spatial output (or any distance); lam is (B, N, 1) or (B, N, 3)
    from `vr_loss`, patches row by row. Three channel weights are joined into one gate by their root mean
    square. No gradient flows into the gate. With kappa None or negative omega is 0, and so is this loss.
    `patch_size` None is the side of the N square patches that fill the map.
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
    """loss_scale (L_VR + perceptual_weight L_P) (Eq. 22)."""
    return loss_scale * (vr + perceptual_weight * perceptual)


def repa_loss(features: torch.Tensor, targets: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    """Representation alignment: 1 - cosine similarity of (B, N, C) features and frozen targets."""
    return _reduce(1 - F.cosine_similarity(features, targets.detach(), dim=-1), reduction)
