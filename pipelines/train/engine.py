"""The optimizer, and the DeepSpeed engine around the objective.

Trained parameters are float32 whatever the base's precision, so that DeepSpeed sees a float32 model with a frozen part:
its ZeRO stages shard, and nothing is cast.
"""

import logging
import math
from typing import Any

import deepspeed
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW, Optimizer

from asymflow.models.quantized import import_bitsandbytes
from pipelines.core.prebuild import BUILD_SECONDS, extensions_folder, remove_stale_locks
from pipelines.train.config import Optim, TrainSettings
from pipelines.train.task import Batch

LOGGER = logging.getLogger(__name__)


class Unsharded:
    """Clip gradients and skip steps without a finite gradient, as ZeRO's optimizers do.

    For ZeRO stage 0, where DeepSpeed does neither. Gradients are the same on every worker, so all decide alike. A fused
    optimizer decides on the device: the host does not wait for the gradient.
    """

    param_groups: list[dict[str, Any]]
    defaults: dict[str, Any]
    clip_grad: float
    found_inf: Tensor
    """1 where the gradient is not finite, which torch's fused optimizers read"""
    _global_grad_norm: Tensor

    def step(self, closure=None):
        """Clip the gradients, and apply the step if they are finite."""
        parameters = [p for group in self.param_groups for p in group["params"]]
        norm = self._global_grad_norm = clip_grad_norm_(parameters, self.clip_grad)
        if self.defaults.get("fused"):
            self.found_inf = (~norm.isfinite()).float()
        elif not norm.isfinite():
            return None
        return super().step(closure)  # type: ignore[misc]


class UnshardedAdam(Unsharded, AdamW):
    """torch's AdamW, in float32."""


def make_optimizer(groups: list[dict[str, Any]], optim: Optim, zero_stage: int, fused: bool = False) -> Optimizer:
    """Return Adam with decoupled weight decay; at stage 0 the optimizer itself clips and skips.

    Args:
        groups: parameter groups.
        optim: settings.
        zero_stage: ZeRO stage.
        fused: update all values in few kernels, for GPUs; the results differ by rounding.
    """
    options: dict[str, Any] = {"betas": optim.betas, "weight_decay": optim.weight_decay}
    if zero_stage:
        return AdamW(groups, fused=fused, **options)
    optimizer: Any
    if optim.optimizer == "adam8bit":
        kind = type("UnshardedAdam8bit", (Unsharded, import_bitsandbytes().optim.AdamW8bit), {})
        optimizer = kind(groups, **options)
    else:
        optimizer = UnshardedAdam(groups, fused=fused, **options)
    optimizer.clip_grad = max_gradient_norm(optim)  # the name that ZeRO's optimizers use
    return optimizer


def deepspeed_config(settings: TrainSettings, micro_batch: int, accumulation: int) -> dict[str, Any]:
    """Return DeepSpeed's configuration."""
    stage = settings.resources.zero_stage
    return {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": max_gradient_norm(settings.optim) if stage else 0.0,
        "zero_optimization": {"stage": stage, "overlap_comm": settings.resources.use_gpu},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }


def make_engine(
    objective: nn.Module, groups: list[dict[str, Any]], settings: TrainSettings, micro_batch: int, accumulation: int
) -> tuple[Any, Optimizer]:
    """Return DeepSpeed's engine, and the optimizer inside it, whose learning rates may be set.

    torch.distributed must be initialized.
    """
    resources = settings.resources
    optimizer = make_optimizer(groups, settings.optim, resources.zero_stage, fused=resources.use_gpu)
    trained: list[nn.Parameter] = [p for group in groups for p in group["params"]]
    # DeepSpeed would wait for a stale lock forever. Newer ones may be held on another node with the same home.
    for lock in remove_stale_locks(extensions_folder(), older_than=BUILD_SECONDS):
        LOGGER.warning("removed %s: stale lock of a killed build", lock)
    engine, *_ = deepspeed.initialize(
        model=objective,
        optimizer=optimizer,
        model_parameters=trained,
        config=deepspeed_config(settings, micro_batch, accumulation),
    )
    return engine, optimizer


def create_optimizer_state(engine: Any, optimizer: Optimizer, batch: Batch) -> None:
    """Take one step of zero length on blank images, so that the optimizer's state exists and can be set.

    DeepSpeed creates that state at the first step; zero gradients and a zero rate leave the values unchanged.
    """
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    batch = batch.to(engine.device)
    for _ in range(engine.gradient_accumulation_steps()):
        loss, _ = engine(**batch.inputs())
        engine.backward(0.0 * loss)
        engine.step()


def set_learning_rates(optimizer: Optimizer, step: int, optim: Optim) -> None:
    """Set the learning rates: warm-up, peak and cool-down, by the step alone, counted from 1."""
    rising, start = 1.0, optim.warmup_ratio
    if optim.warmup_steps and start is None:
        rising = step / optim.warmup_steps
    elif optim.warmup_steps and start is not None:
        rising = start + (1 - start) * (step - 1) / optim.warmup_steps
    falling = (optim.steps - step + 1) / optim.cooldown_steps if optim.cooldown_steps else 1.0
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * min(1.0, rising, falling)


def set_clip(engine: Any, step: int, optim: Optim) -> None:
    """Set the gradient norm's limit, which applies from `optim.clip_from` on, as the released weights were trained."""
    engine.optimizer.clip_grad = max_gradient_norm(optim) if step >= optim.clip_from else math.inf


def max_gradient_norm(optim: Optim) -> float:
    """Return the maximum gradient norm; infinity without clipping."""
    return optim.clip or math.inf


def backward_and_step(engine: Any, micro_batches: list[Batch]) -> list[dict[str, Tensor]]:
    """Run one optimizer step. Returns each micro-batch's terms, tensors (B,) on the engine's device.

    A loss that is not finite makes the gradients NaN on every worker, and the step is skipped: `was_skipped`. At ZeRO
    stage 0 nothing here reads a value from the device, so that the host stays ahead of it.
    """
    collected = []
    for micro_batch in micro_batches:
        micro_batch = micro_batch.to(engine.device)
        loss, terms = engine(**micro_batch.inputs())
        engine.backward(loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan))
        engine.step()
        collected.append(
            {"sigma": micro_batch.sigma, "weight": micro_batch.weight, "key_sums": micro_batch.key_sums, **terms}
        )
    return collected


def was_skipped(engine: Any) -> bool:
    """Return whether the last step was skipped. On a GPU this waits for the step."""
    if engine.zero_optimization():
        return bool(engine.optimizer.overflow)
    return not math.isfinite(gradient_norm(engine))


def gradient_norm(engine: Any) -> float:
    """Return the last step's gradient norm before clipping. On a GPU this waits for the step."""
    norm = engine.get_global_grad_norm()
    return 0.0 if norm is None else float(norm)
