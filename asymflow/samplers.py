"""Solvers of the flow ODE from noise (sigma = 1) to data (sigma = 0), at the noise levels of `sampling_sigmas`.

The velocity is never evaluated at sigma = 0. Guidance belongs inside the velocity.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch

from .guidance import Velocity
from .parameterization import u_from_x_0, x_0_from_u
from .schedule import sampling_sigmas

Transform = Callable[[torch.Tensor], torch.Tensor] | None
"""Replaces each denoised sample x_0 (B, ...), such as by the gamut clamp (App. B.2); the velocity follows it"""
Callback = Callable[[int, torch.Tensor], torch.Tensor | None] | None
"""Called with (step, x_t) after each step, step = 0 .. steps - 1; a tensor that it returns replaces x_t"""

# UniPC works with log((1 - sigma) / sigma), which is infinite at sigma = 1.
_UNIPC_SIGMA_MAX = 1 - 1e-4
UNIPC = {"solver_order": 2, "solver_type": "bh2"}
# The solver works with x_0, which the transform gives directly; hence "sample".
_X_0_ON_FLOW = {"prediction_type": "sample", "use_flow_sigmas": True}


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


def _denoise(velocity: Velocity, x_t: torch.Tensor, sigma: torch.Tensor, transform_x_0: Transform) -> torch.Tensor:
    """Return x_0 at x_t, transformed."""
    batch_sigma = sigma.to(device=x_t.device, dtype=x_t.dtype).expand(x_t.shape[0])
    x_0 = x_0_from_u(velocity(x_t, batch_sigma), x_t, batch_sigma)
    return x_0 if transform_x_0 is None else transform_x_0(x_0)


def _after(callback: Callback, step: int, x_t: torch.Tensor) -> torch.Tensor:
    changed = None if callback is None else callback(step, x_t)
    return x_t if changed is None else changed


@torch.no_grad()
def euler(
    velocity: Velocity,
    noise: torch.Tensor,
    steps: int,
    shift: float = 1.0,
    transform_x_0: Transform = None,
    callback: Callback = None,
) -> torch.Tensor:
    """Solve with Euler's method, first order; `steps` evaluations.

    Args:
        velocity: Maps (x_t, sigma (B,)) to u.
        noise: Standard normal noise (B, ...).
        steps: Number of steps.
        shift: Shift of the noise levels (`shift_sigma`).
        transform_x_0: Applied to each denoised sample; None: not.
        callback: Called after each step; None: not.

    Returns:
        x_0, with the shape and dtype of the noise.

    Raises:
        ValueError: If steps is below 1, or shift is not above 0.
    """
    sigmas, x_t = sampling_sigmas(steps, shift), noise
    for i in range(steps):
        x_0 = _denoise(velocity, x_t, sigmas[i], transform_x_0)
        # x_t + (sigma' - sigma) u in one pass: the step goes along the straight line from x_t to x_0
        x_t = torch.lerp(x_0, x_t, float(sigmas[i + 1] / sigmas[i]))
        x_t = _after(callback, i, x_t)
    return x_t


@torch.no_grad()
def heun(
    velocity: Velocity,
    noise: torch.Tensor,
    steps: int,
    shift: float = 1.0,
    transform_x_0: Transform = None,
    callback: Callback = None,
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

    Returns:
        x_0, with the shape and dtype of the noise.

    Raises:
        ValueError: If steps is below 1, or shift is not above 0.
    """
    sigmas, x_t = sampling_sigmas(steps, shift), noise
    for i in range(steps):
        x_0 = _denoise(velocity, x_t, sigmas[i], transform_x_0)
        if i == steps - 1:
            x_t = x_0
        else:
            x_next = torch.lerp(x_0, x_t, float(sigmas[i + 1] / sigmas[i]))  # Euler's step
            x_0_next = _denoise(velocity, x_next, sigmas[i + 1], transform_x_0)
            u, u_next = u_from_x_0(x_0, x_t, sigmas[i]), u_from_x_0(x_0_next, x_next, sigmas[i + 1])
            x_t = x_t + float(sigmas[i + 1] - sigmas[i]) / 2 * (u + u_next)
        x_t = _after(callback, i, x_t)
    return x_t


@torch.no_grad()
def unipc(
    velocity: Velocity,
    noise: torch.Tensor,
    steps: int,
    shift: float = 1.0,
    transform_x_0: Transform = None,
    callback: Callback = None,
    solver: Mapping[str, Any] = MappingProxyType({}),
) -> torch.Tensor:
    """Solve with UniPC (Zhao et al. 2023), predictor and corrector, by diffusers; `steps` evaluations.

    The velocity is evaluated at the true noise levels; inside the solver the first one is clamped below 1.

    Args:
        velocity: Maps (x_t, sigma (B,)) to u.
        noise: Standard normal noise (B, ...).
        steps: Number of steps.
        shift: Shift of the noise levels (`shift_sigma`).
        transform_x_0: Applied to each denoised sample; None: not.
        callback: Called after each step; None: not.
        solver: Options of UniPCMultistepScheduler that replace or extend `UNIPC`; its `config` is accepted.

    Returns:
        x_0, with the shape and dtype of the noise.

    Raises:
        ValueError: If steps is below 1, or shift is not above 0.
    """
    from diffusers import UniPCMultistepScheduler

    sigmas, x_t = sampling_sigmas(steps, shift), noise
    options = {name: value for name, value in solver.items() if not name.startswith("_")}
    scheduler: Any = UniPCMultistepScheduler.from_config({**UNIPC, **options, **_X_0_ON_FLOW})
    scheduler.set_timesteps(steps)
    # The scheduler's own levels end above 0, are rounded to float32, and are looked up by integer timesteps.
    scheduler.sigmas = sigmas.to(torch.promote_types(noise.dtype, torch.float32))
    # It stays above the next level, however near that is: two equal levels would give 0 / 0.
    scheduler.sigmas[0] = max(_UNIPC_SIGMA_MAX, float(1 + sigmas[1]) / 2)
    scheduler.set_begin_index(0)
    for i in range(steps):
        x_0 = _denoise(velocity, x_t, sigmas[i], transform_x_0)
        x_t = scheduler.step(x_0, scheduler.timesteps[i], x_t, return_dict=False)[0]
        x_t = _after(callback, i, x_t)
    return x_t


SOLVERS = {"unipc": unipc, "euler": euler, "heun": heun}
"""Solvers by their names in settings"""
