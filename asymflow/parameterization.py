"""Asymmetric velocity: its targets, the recovery of the full velocity, and x_0 <-> u (Secs. 4 and 5.1, App. A.2).

Tokens are (B, N, D), A is (D, r) with orthonormal columns, sigma is (B,). The projector P = A A^T is never built.
Results have the promoted dtype of the token arguments.
"""

from collections.abc import Callable

import torch

from .schedule import calibrate, expand_sigma
from .subspace import project


def interpolate(x_0: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Return the noisy sample x_t = (1 - sigma) x_0 + sigma noise.

    Args:
        x_0: Clean data (B, ...).
        noise: Standard normal noise of the same shape.
        sigma: Noise levels (B,) in [0, 1], or a scalar.

    Returns:
        x_t (B, ...).
    """
    sigma = expand_sigma(sigma, x_0).to(x_0.dtype)
    return (1 - sigma) * x_0 + sigma * noise


def x_0_from_u(u: torch.Tensor, x_t: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Return clean data from the velocity, x_0 = x_t - sigma u (Eq. 1).

    Args:
        u: Velocity (B, ...).
        x_t: Noisy sample of the same shape.
        sigma: Noise levels (B,), or a scalar.

    Returns:
        x_0 (B, ...).
    """
    return x_t - expand_sigma(sigma, x_t).to(x_t.dtype) * u


def u_from_x_0(x_0: torch.Tensor, x_t: torch.Tensor, sigma: torch.Tensor, sigma_floor: float = 0.0) -> torch.Tensor:
    """Return the velocity from clean data, u = (x_t - x_0) / max(sigma, sigma_floor) (Eq. 1).

    Args:
        x_0: Clean data (B, ...).
        x_t: Noisy sample of the same shape.
        sigma: Noise levels (B,), or a scalar.
        sigma_floor: Lower bound of the divisor.

    Returns:
        u (B, ...).
    """
    return (x_t - x_0) / expand_sigma(sigma, x_t).to(x_t.dtype).clamp_min(sigma_floor)


def target_u_a(x_0: torch.Tensor, noise: torch.Tensor, A: torch.Tensor) -> torch.Tensor:
    """Return the asymmetric velocity u_A = P noise - x_0 (Eq. 3).

    Args:
        x_0: Clean pixel tokens (B, N, D).
        noise: Standard normal tokens (B, N, D).
        A: Basis (D, r).

    Returns:
        u_A (B, N, D).
    """
    return project(noise, A) - x_0


def target_u_a_cal(
    x_0: torch.Tensor, noise: torch.Tensor, A: torch.Tensor, s: float | torch.Tensor = 1.0
) -> torch.Tensor:
    """Return the calibrated target P noise - x_0 / s, in the coordinates of the network input k x_t (Eq. 16).

    Args:
        x_0: Clean pixel tokens (B, N, D).
        noise: Standard normal tokens (B, N, D).
        A: Basis (D, r).
        s: Scale of the subspace.

    Returns:
        Calibrated u_A (B, N, D).
    """
    return project(noise, A) - x_0 / s


def recover_u(
    u_a_cal: torch.Tensor,
    x_t: torch.Tensor,
    sigma: torch.Tensor,
    A: torch.Tensor,
    s: float | torch.Tensor = 1.0,
    sigma_floor: float = 1e-4,
) -> torch.Tensor:
    """Recover the full velocity u from the calibrated asymmetric velocity (Eq. 17; Eq. 5 when s = 1).

    With y = (x_t + s u_A) / sigma, u is y outside the subspace and g = s k u_A + (1 - s k) x_t / sigma inside it, so
    u = y + P (g - y): one projection down and one up. The result is computed in at least float32, also under autocast:
    in half precision the terms of size 1 / sigma would not cancel inside the subspace.

    Args:
        u_a_cal: Calibrated asymmetric velocity (B, N, D).
        x_t: Noisy pixel tokens (B, N, D).
        sigma: Noise levels (B,) in [0, 1], or a scalar.
        A: Basis (D, r).
        s: Scale of the subspace.
        sigma_floor: Lower bound of sigma where it divides; tau and k use sigma itself.

    Returns:
        u (B, N, D).

    Raises:
        ValueError: If the shapes do not fit.
    """
    if u_a_cal.shape != x_t.shape or u_a_cal.shape[-1] != A.shape[0]:
        raise ValueError(
            f"u_a_cal {tuple(u_a_cal.shape)} and x_t {tuple(x_t.shape)} must have one shape, with "
            f"last dimension {A.shape[0]} as in A {tuple(A.shape)}"
        )
    result = torch.promote_types(u_a_cal.dtype, x_t.dtype)
    dtype = torch.promote_types(result, torch.float32)
    with torch.autocast(x_t.device.type, enabled=False):
        u_a_cal, x_t = u_a_cal.to(dtype), x_t.to(dtype)
        A = A.to(device=x_t.device, dtype=dtype)
        if isinstance(s, torch.Tensor):
            s = s.to(device=x_t.device, dtype=dtype)
        sigma = expand_sigma(sigma, x_t).to(dtype)
        _, k = calibrate(sigma, s)
        inverse = 1 / sigma.clamp_min(sigma_floor)
        # Sums are made in place: no backward pass needs the values that they overwrite, and a fresh tensor as
        # large as x_t costs a CPU more than the arithmetic.
        difference = (x_t * (-s * k * inverse)).addcmul_(u_a_cal, s * k - s * inverse)
        coordinates = (difference @ A).flatten(0, -2)
        del difference
        u = (x_t * inverse).addcmul_(u_a_cal, s * inverse)
        u = u.flatten(0, -2).addmm_(coordinates, A.T).view(x_t.shape)
    return u.to(result)


def calibrated_velocity(
    network: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    x_t: torch.Tensor,
    sigma: torch.Tensor,
    A: torch.Tensor,
    s: float | torch.Tensor = 1.0,
    sigma_floor: float = 1e-4,
) -> torch.Tensor:
    """Evaluate a network at calibrated inputs and recover the full velocity (Eqs. 13-17).

    Args:
        network: Maps (k x_t (B, N, D), tau (B,)) to the calibrated asymmetric velocity (B, N, D).
        x_t: Noisy pixel tokens (B, N, D).
        sigma: Noise levels (B,) in [0, 1], or a scalar.
        A: Basis (D, r).
        s: Scale of the subspace.
        sigma_floor: Lower bound of sigma where it divides (`recover_u`).

    Returns:
        u (B, N, D).
    """
    tau, k = calibrate(sigma, s)
    u_a_cal = network(expand_sigma(k, x_t).to(x_t.dtype) * x_t, tau)
    return recover_u(u_a_cal.to(x_t.dtype), x_t, sigma, A, s, sigma_floor)


def lift(z_0: torch.Tensor, A: torch.Tensor, s: float | torch.Tensor = 1.0) -> torch.Tensor:
    """Lift latent tokens to low-rank pixels, x_0^L = s A z_0 (Eq. 11).

    Args:
        z_0: Latent tokens (B, N, d).
        A: Basis (D, d).
        s: Scale of the subspace.

    Returns:
        x_0^L (B, N, D), with the dtype of z_0.
    """
    with torch.autocast(z_0.device.type, enabled=False):
        return s * (z_0 @ A.to(device=z_0.device, dtype=z_0.dtype).T)


def teacher_x_0_low_hat(
    u_z_hat: torch.Tensor,
    z_tau: torch.Tensor,
    tau: torch.Tensor,
    A: torch.Tensor,
    s: float | torch.Tensor = 1.0,
) -> torch.Tensor:
    """Return the latent model's clean prediction, lifted: s A (z_tau - tau u_z_hat) (Eq. 51, calibrated).

    Then x_0^L - x_0_low_hat = s A (z_0 - z_0_hat), and no pixel-space copy of the teacher is needed.

    Args:
        u_z_hat: Predicted latent velocity (B, N, d).
        z_tau: Noisy latent tokens (B, N, d).
        tau: Latent noise levels (B,).
        A: Basis (D, d).
        s: Scale of the subspace.

    Returns:
        x_0_low_hat (B, N, D).
    """
    return lift(x_0_from_u(u_z_hat, z_tau, tau), A, s)
