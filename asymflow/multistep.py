"""Multistep solvers of the flow ODE and SDE by diffusers' schedulers, at the noise levels of `sampling_sigmas`.

The schedulers receive the denoised sample x_0, which a transform gives directly. The velocity is evaluated at the true
noise levels; inside the schedulers, which work with log((1 - sigma) / sigma), the first level is clamped below 1. The
last step, to sigma = 0, ends at x_0.
"""

import inspect
from collections.abc import Mapping
from functools import partial
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
def multistep(
    kind: str,
    defaults: Mapping[str, Any],
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
    """Solve with a multistep scheduler of diffusers; `steps` evaluations.

    Args:
        kind: Class of the scheduler.
        defaults: Options of the scheduler that `solver` replaces or extends.
        velocity: Maps (x_t, sigma (B,)) to u.
        noise: Standard normal noise (B, ...).
        steps: Number of steps.
        shift: Shift of the noise levels (`shift_sigma`).
        transform_x_0: Applied to each denoised sample; None: not.
        callback: Called after each step; None: not.
        solver: Options of the scheduler; its `config` is accepted.
        sigmas: Noise levels that replace those of `steps` and `shift`; `noise` is then x_t at the first.
        generator: Source of the noise of an SDE's steps; solvers of the ODE do not use it.

    Returns:
        x_0, with the shape and dtype of the noise.

    Raises:
        ValueError: If steps is below 1, or shift is not above 0.
    """
    import diffusers  # importing this module loads torch alone

    options = {name: value for name, value in {**defaults, **solver}.items() if not name.startswith("_")}
    scheduler: Any = getattr(diffusers, kind).from_config({**options, **_X_0_ON_FLOW})
    of_step = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    sigmas, x_t = levels(steps, shift, sigmas), noise
    last = len(sigmas) - 2
    scheduler.set_timesteps(last + 1)
    # The scheduler's own levels end above 0, are rounded to float32, and are looked up by integer timesteps.
    scheduler.timesteps = 1000 * sigmas[:-1]
    scheduler.sigmas = sigmas.to(torch.promote_types(noise.dtype, torch.float32), copy=True)
    if sigmas[0] > _SIGMA_MAX:
        # It stays above the next level, however near that is: two equal levels would give 0 / 0.
        scheduler.sigmas[0] = max(_SIGMA_MAX, float(1 + sigmas[1]) / 2)
    scheduler.set_begin_index(0)
    for i in range(last + 1):
        x_0 = denoise(velocity, x_t, sigmas[i], transform_x_0)
        if i < last:
            x_t = scheduler.step(x_0, scheduler.timesteps[i], x_t, return_dict=False, **of_step)[0]
        else:
            x_t = x_0
        x_t = after_step(callback, i, x_t)
    return x_t


unipc = partial(multistep, "UniPCMultistepScheduler", UNIPC)
"""UniPC (Zhao et al. 2023), predictor and corrector; arguments of `multistep` from `velocity` on, here and below"""
dpmsolver = partial(multistep, "DPMSolverMultistepScheduler", _NO_OPTIONS)
"""DPM-Solver++ 2M (Lu et al. 2022); `solver={"algorithm_type": "sde-dpmsolver++"}` solves the SDE"""
deis = partial(multistep, "DEISMultistepScheduler", _NO_OPTIONS)
"""DEIS (Zhang and Chen 2022)"""
sasolver = partial(multistep, "SASolverScheduler", _NO_OPTIONS)
"""SA-Solver of the SDE (Xue et al. 2023), predictor and corrector. The option `tau_func` maps 1000 sigma to the amount
of noise; the default is 1 for sigma from 0.2 to 0.8, else 0"""
