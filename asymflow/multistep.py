"""Multistep solvers of the flow ODE and SDE by diffusers' schedulers, at the noise levels of `sampling_sigmas`.

The schedulers receive the denoised sample x_0, which a transform gives directly. The velocity is evaluated at the true
noise levels; inside the schedulers, which work with log((1 - sigma) / sigma), the first level is clamped below 1. The
last step, to sigma = 0, ends at x_0.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch

from .guidance import Velocity
from .solver_steps import Callback, Transform, after_step, denoise, levels

UNIPC = {"solver_order": 2, "solver_type": "bh2"}
_SIGMA_MAX = 1 - 1e-4
_X_0_ON_FLOW = {"prediction_type": "sample", "use_flow_sigmas": True}
_NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})
Generator = torch.Generator | list[torch.Generator] | None
"""Source of the noise of each step, or a list of one per sample; None: torch's default generator"""


@torch.no_grad()
def unipc(
    velocity: Velocity,
    noise: torch.Tensor,
    steps: int,
    shift: float = 1.0,
    transform_x_0: Transform = None,
    callback: Callback = None,
    solver: Mapping[str, Any] = _NO_OPTIONS,
    sigmas: torch.Tensor | None = None,
) -> torch.Tensor:
    """Solve with UniPC (Zhao et al. 2023), predictor and corrector, by diffusers; `steps` evaluations.

    Args:
        velocity: Maps (x_t, sigma (B,)) to u.
        noise: Standard normal noise (B, ...).
        steps: Number of steps.
        shift: Shift of the noise levels (`shift_sigma`).
        transform_x_0: Applied to each denoised sample; None: not.
        callback: Called after each step; None: not.
        solver: Options of UniPCMultistepScheduler that replace or extend `UNIPC`; its `config` is accepted.
        sigmas: Noise levels that replace those of `steps` and `shift`; `noise` is then x_t at the first.

    Returns:
        x_0, with the shape and dtype of the noise.

    Raises:
        ValueError: If steps is below 1, or shift is not above 0.
    """
    sigmas, options = levels(steps, shift, sigmas), {**UNIPC, **solver}
    return _solve("UniPCMultistepScheduler", options, velocity, noise, sigmas, transform_x_0, callback)


@torch.no_grad()
def dpmsolver(
    velocity: Velocity,
    noise: torch.Tensor,
    steps: int,
    shift: float = 1.0,
    transform_x_0: Transform = None,
    callback: Callback = None,
    solver: Mapping[str, Any] = _NO_OPTIONS,
    sigmas: torch.Tensor | None = None,
    generator: Generator = None,
) -> torch.Tensor:
    """Solve with DPM-Solver++ 2M (Lu et al. 2022), by diffusers; `steps` evaluations.

    Args:
        velocity: Maps (x_t, sigma (B,)) to u.
        noise: Standard normal noise (B, ...).
        steps: Number of steps.
        shift: Shift of the noise levels (`shift_sigma`).
        transform_x_0: Applied to each denoised sample; None: not.
        callback: Called after each step; None: not.
        solver: Options of DPMSolverMultistepScheduler; `{"algorithm_type": "sde-dpmsolver++"}` solves the SDE.
        sigmas: Noise levels that replace those of `steps` and `shift`; `noise` is then x_t at the first.
        generator: Source of the SDE's noise.

    Returns:
        x_0, with the shape and dtype of the noise.

    Raises:
        ValueError: If steps is below 1, or shift is not above 0.
    """
    sigmas, drawn = levels(steps, shift, sigmas), {"generator": generator}
    return _solve("DPMSolverMultistepScheduler", solver, velocity, noise, sigmas, transform_x_0, callback, drawn)


@torch.no_grad()
def deis(
    velocity: Velocity,
    noise: torch.Tensor,
    steps: int,
    shift: float = 1.0,
    transform_x_0: Transform = None,
    callback: Callback = None,
    solver: Mapping[str, Any] = _NO_OPTIONS,
    sigmas: torch.Tensor | None = None,
) -> torch.Tensor:
    """Solve with DEIS (Zhang and Chen 2022), by diffusers; `steps` evaluations.

    Args:
        velocity: Maps (x_t, sigma (B,)) to u.
        noise: Standard normal noise (B, ...).
        steps: Number of steps.
        shift: Shift of the noise levels (`shift_sigma`).
        transform_x_0: Applied to each denoised sample; None: not.
        callback: Called after each step; None: not.
        solver: Options of DEISMultistepScheduler; its `config` is accepted.
        sigmas: Noise levels that replace those of `steps` and `shift`; `noise` is then x_t at the first.

    Returns:
        x_0, with the shape and dtype of the noise.

    Raises:
        ValueError: If steps is below 1, or shift is not above 0.
    """
    sigmas = levels(steps, shift, sigmas)
    return _solve("DEISMultistepScheduler", solver, velocity, noise, sigmas, transform_x_0, callback)


@torch.no_grad()
def sasolver(
    velocity: Velocity,
    noise: torch.Tensor,
    steps: int,
    shift: float = 1.0,
    transform_x_0: Transform = None,
    callback: Callback = None,
    solver: Mapping[str, Any] = _NO_OPTIONS,
    sigmas: torch.Tensor | None = None,
    generator: Generator = None,
) -> torch.Tensor:
    """Solve the SDE with SA-Solver (Xue et al. 2023), predictor and corrector, by diffusers; `steps` evaluations.

    Args:
        velocity: Maps (x_t, sigma (B,)) to u.
        noise: Standard normal noise (B, ...).
        steps: Number of steps.
        shift: Shift of the noise levels (`shift_sigma`).
        transform_x_0: Applied to each denoised sample; None: not.
        callback: Called after each step; None: not.
        solver: Options of SASolverScheduler. Its `tau_func` maps 1000 sigma to the amount of noise; the default is 1
            for sigma from 0.2 to 0.8, else 0.
        sigmas: Noise levels that replace those of `steps` and `shift`; `noise` is then x_t at the first.
        generator: Source of the SDE's noise.

    Returns:
        x_0, with the shape and dtype of the noise.

    Raises:
        ValueError: If steps is below 1, or shift is not above 0.
    """
    sigmas, drawn = levels(steps, shift, sigmas), {"generator": generator}
    return _solve("SASolverScheduler", solver, velocity, noise, sigmas, transform_x_0, callback, drawn)


def _solve(
    kind: str,
    options: Mapping[str, Any],
    velocity: Velocity,
    noise: torch.Tensor,
    sigmas: torch.Tensor,
    transform_x_0: Transform,
    callback: Callback,
    of_step: Mapping[str, Any] = _NO_OPTIONS,
) -> torch.Tensor:
    """Return x_0; `of_step` are further arguments of the scheduler's step."""
    import diffusers  # importing this module loads torch alone

    known = {name: value for name, value in options.items() if not name.startswith("_")}
    scheduler: Any = getattr(diffusers, kind).from_config({**known, **_X_0_ON_FLOW})
    steps, x_t = len(sigmas) - 1, noise
    scheduler.set_timesteps(steps)
    # The scheduler's own levels end above 0, are rounded to float32, and are looked up by integer timesteps.
    scheduler.timesteps = 1000 * sigmas[:-1]
    scheduler.sigmas = sigmas.to(torch.promote_types(noise.dtype, torch.float32), copy=True)
    if sigmas[0] > _SIGMA_MAX:
        # It stays above the next level, however near that is: two equal levels would give 0 / 0.
        scheduler.sigmas[0] = max(_SIGMA_MAX, float(1 + sigmas[1]) / 2)
    scheduler.set_begin_index(0)
    for i in range(steps):
        x_0 = denoise(velocity, x_t, sigmas[i], transform_x_0)
        if i < steps - 1:
            x_t = scheduler.step(x_0, scheduler.timesteps[i], x_t, return_dict=False, **of_step)[0]
        else:
            x_t = x_0
        x_t = after_step(callback, i, x_t)
    return x_t
