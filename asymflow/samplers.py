"""Solvers of the flow ODE from noise (sigma = 1) to data (sigma = 0), at the noise levels of `sampling_sigmas`.

The velocity is never evaluated at sigma = 0. Guidance belongs inside the velocity.
"""

from collections.abc import Callable

import torch

from .guidance import Velocity
from .multistep import deis, dpmsolver, sasolver, unipc
from .parameterization import u_from_x_0
from .solver_steps import Callback, Transform, after_step, denoise, levels


def noise_for(seed: int, index: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return the starting noise of one sample of a run, the same in any batch and on any worker.

    Args:
        seed: Seed of the run.
        index: Index of the sample; (seed, index) = (0, 1) and (1, 0) differ.
        shape: Shape of one sample.
        dtype: Type of the result.

    Returns:
        Standard normal noise of that shape, on the CPU.
    """
    mixed = (seed * 0x9E3779B97F4A7C15 + index * 0xD1B54A32D192ED03 + 1) % 2**64
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    mixed ^= mixed >> 27
    generator = torch.Generator().manual_seed(mixed % 2**63)
    return torch.randn(shape, generator=generator, dtype=dtype)


@torch.no_grad()
def euler(
    velocity: Velocity,
    noise: torch.Tensor,
    steps: int,
    shift: float = 1.0,
    transform_x_0: Transform = None,
    callback: Callback = None,
    sigmas: torch.Tensor | None = None,
) -> torch.Tensor:
    """Solve with Euler's method, first order; `steps` evaluations.

    Args:
        velocity: Maps (x_t, sigma (B,)) to u.
        noise: Standard normal noise (B, ...).
        steps: Number of steps.
        shift: Shift of the noise levels (`shift_sigma`).
        transform_x_0: Applied to each denoised sample; None: not.
        callback: Called after each step; None: not.
        sigmas: Noise levels that replace those of `steps` and `shift`; `noise` is then x_t at the first.

    Returns:
        x_0, with the shape and dtype of the noise.

    Raises:
        ValueError: If steps is below 1, or shift is not above 0.
    """
    sigmas, x_t = levels(steps, shift, sigmas), noise
    last = len(sigmas) - 2
    for i in range(last + 1):
        x_0 = denoise(velocity, x_t, sigmas[i], transform_x_0)
        # x_t + (sigma' - sigma) u in one pass: the step goes along the straight line from x_t to x_0
        x_t = torch.lerp(x_0, x_t, float(sigmas[i + 1] / sigmas[i]))
        x_t = after_step(callback, i, x_t)
    return x_t


@torch.no_grad()
def heun(
    velocity: Velocity,
    noise: torch.Tensor,
    steps: int,
    shift: float = 1.0,
    transform_x_0: Transform = None,
    callback: Callback = None,
    sigmas: torch.Tensor | None = None,
) -> torch.Tensor:
    """Solve with Heun's method, second order; 2 steps - 1 evaluations.

    The last step is Euler's: there is no velocity at sigma = 0.

    Args:
        velocity: Maps (x_t, sigma (B,)) to u.
        noise: Standard normal noise (B, ...).
        steps: Number of steps.
        shift: Shift of the noise levels (`shift_sigma`).
        transform_x_0: Applied to each denoised sample; None: not.
        callback: Called after each step; None: not.
        sigmas: Noise levels that replace those of `steps` and `shift`; `noise` is then x_t at the first.

    Returns:
        x_0, with the shape and dtype of the noise.

    Raises:
        ValueError: If steps is below 1, or shift is not above 0.
    """
    sigmas, x_t = levels(steps, shift, sigmas), noise
    last = len(sigmas) - 2
    for i in range(last + 1):
        x_0 = denoise(velocity, x_t, sigmas[i], transform_x_0)
        if i == last:
            x_t = x_0
        else:
            x_next = torch.lerp(x_0, x_t, float(sigmas[i + 1] / sigmas[i]))  # Euler's step
            x_0_next = denoise(velocity, x_next, sigmas[i + 1], transform_x_0)
            u, u_next = u_from_x_0(x_0, x_t, sigmas[i]), u_from_x_0(x_0_next, x_next, sigmas[i + 1])
            x_t = x_t + float(sigmas[i + 1] - sigmas[i]) / 2 * (u + u_next)
        x_t = after_step(callback, i, x_t)
    return x_t


SOLVERS: dict[str, Callable[..., torch.Tensor]] = {
    "unipc": unipc,
    "euler": euler,
    "heun": heun,
    "dpmsolver": dpmsolver,
    "deis": deis,
    "sasolver": sasolver,
}
"""Solvers by their names in settings"""
