"""Solvers of the flow ODE from noise (sigma = 1) to data (sigma = 0).

All take velocity(x_t, sigma (B,)) -> u and the starting noise (B, ...), and return x_0 of the same shape and
dtype. The noise levels are those of `sampling_sigmas`. `transform_x_0`, where given, is applied to the
denoised sample at each evaluation and the velocity follows it (the gamut clamp of App. B.2); guidance belongs
inside `velocity`. `callback(step, x_t)` is called after each step, step = 0 .. steps - 1; a tensor that it
returns takes the place of x_t. No velocity is asked for at sigma = 0.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch

from .guidance import Velocity
from .parameterization import u_from_x_0, x_0_from_u
from .schedule import sampling_sigmas

Transform = Callable[[torch.Tensor], torch.Tensor] | None
Callback = Callable[[int, torch.Tensor], torch.Tensor | None] | None

# UniPC works with log((1 - sigma) / sigma), infinite at the pure noise where sampling starts.
_UNIPC_SIGMA_MAX = 1 - 1e-4
UNIPC = {"solver_order": 2, "solver_type": "bh2"}
# We hand over x_0, hence "sample": it is what the solver works with, and the transform gives it directly.
_X_0_ON_FLOW = {"prediction_type": "sample", "use_flow_sigmas": True}


def noise_for(
    seed: int, index: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Starting noise of sample `index` of a run: the same whatever batch or worker it falls to. On the CPU.

    `shape` is that of one sample. One generator for each (seed, index); the two are mixed so that (0, 1) and
    (1, 0) differ.
    """
    mixed = (seed * 0x9E3779B97F4A7C15 + index * 0xD1B54A32D192ED03 + 1) % 2**64
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    mixed ^= mixed >> 27
    generator = torch.Generator().manual_seed(mixed % 2**63)
    return torch.randn(shape, generator=generator, dtype=dtype)


def _denoise(
    velocity: Velocity, x_t: torch.Tensor, sigma: torch.Tensor, transform_x_0: Transform
) -> torch.Tensor:
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
    """First-order solver; `steps` evaluations."""
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
    """Second-order solver; 2 steps - 1 evaluations. The last step is Euler's: sigma 0 has no velocity."""
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
    """UniPC (predictor and corrector) by diffusers; `steps` evaluations.

    The velocity is evaluated at the true noise levels; inside the solver the first is clamped below 1. `solver`
    changes the options in `UNIPC` or adds others of UniPCMultistepScheduler; its `config` will do.
    """
    from diffusers import UniPCMultistepScheduler

    sigmas, x_t = sampling_sigmas(steps, shift), noise
    options = {name: value for name, value in solver.items() if not name.startswith("_")}
    scheduler: Any = UniPCMultistepScheduler.from_config({**UNIPC, **options, **_X_0_ON_FLOW})
    scheduler.set_timesteps(steps)
    # Our own levels: the scheduler's end above 0, are rounded to float32, and are matched by integer
    # timesteps.
    scheduler.sigmas = sigmas.to(torch.promote_types(noise.dtype, torch.float32))
    # Between 1 and the next level, however near that is: two equal levels would give 0 / 0.
    scheduler.sigmas[0] = max(_UNIPC_SIGMA_MAX, float(1 + sigmas[1]) / 2)
    scheduler.set_begin_index(0)
    for i in range(steps):
        x_0 = _denoise(velocity, x_t, sigmas[i], transform_x_0)
        x_t = scheduler.step(x_0, scheduler.timesteps[i], x_t, return_dict=False)[0]
        x_t = _after(callback, i, x_t)
    return x_t
