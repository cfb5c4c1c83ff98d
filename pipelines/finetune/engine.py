"""The optimizer, and DeepSpeed around the objective.

What is trained is float32 whatever the base's precision, so that DeepSpeed sees a float32 model with a frozen part: its
ZeRO stages shard, and nothing is cast.
"""

import logging
import math
import sys
from typing import Any

import deepspeed
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW, Optimizer

from asymflow.models.adapted import AdaptedFlux2
from pipelines.finetune.batches import Batch
from pipelines.finetune.config import FinetuneSettings, Optim
from pipelines.finetune.objective import Objective
from pipelines.prebuild import BUILD_SECONDS, extensions_folder, remove_stale_locks

LOGGER = logging.getLogger(__name__)


class Unsharded:
    """What ZeRO's optimizers do themselves, for one that DeepSpeed leaves alone: clip, and skip a step whose gradient
    is not finite. Gradients are the same on every worker, so all decide alike."""

    param_groups: list[dict[str, Any]]
    clip_grad: float
    overflow = False
    _global_grad_norm = 0.0

    def step(self, closure=None):
        parameters = [p for group in self.param_groups for p in group["params"]]
        self._global_grad_norm = float(clip_grad_norm_(parameters, self.clip_grad))
        self.overflow = not math.isfinite(self._global_grad_norm)
        return None if self.overflow else super().step(closure)  # type: ignore[misc]


class UnshardedAdam(Unsharded, AdamW):
    """torch's, in float32."""


def parameter_groups(model: AdaptedFlux2, optim: Optim) -> list[dict[str, Any]]:
    """`proj_out` may learn at its own rate (appendix B.2)."""
    named = model.trainable()
    last = {id(p) for p in model.transformer.proj_out.parameters()}
    rates = {False: optim.lr, True: optim.lr_proj_out or optim.lr}
    parts = {is_last: [p for p in named.values() if (id(p) in last) == is_last] for is_last in rates}
    return [{"params": p, "lr": rates[key], "peak": rates[key]} for key, p in parts.items() if p]


def make_optimizer(model: AdaptedFlux2, optim: Optim, zero_stage: int) -> Optimizer:
    """Adam with decoupled weight decay. At stage 0 DeepSpeed leaves clipping and skipping to it."""
    groups = parameter_groups(model, optim)
    options: dict[str, Any] = {"betas": optim.betas, "weight_decay": optim.weight_decay}
    if zero_stage:
        return AdamW(groups, **options)
    optimizer: Any
    if optim.optimizer == "adam8bit":
        if "bitsandbytes.optim" not in sys.modules:
            sys.modules.pop("bitsandbytes", None)  # hidden so far, see `pipelines`
        from bitsandbytes.optim import AdamW8bit  # loads CUDA's libraries

        kind = type("UnshardedAdam8bit", (Unsharded, AdamW8bit), {})
        optimizer = kind(groups, **options)
    else:
        optimizer = UnshardedAdam(groups, **options)
    optimizer.clip_grad = optim.clip  # as ZeRO's optimizers call it
    return optimizer


def deepspeed_config(settings: FinetuneSettings, micro_batch: int, accumulation: int) -> dict[str, Any]:
    stage = settings.resources.zero_stage
    return {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": settings.optim.clip if stage else 0.0,
        "zero_optimization": {"stage": stage, "overlap_comm": settings.resources.use_gpu},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }


def make_engine(
    objective: Objective, settings: FinetuneSettings, micro_batch: int, accumulation: int
) -> tuple[Any, Optimizer]:
    """DeepSpeed's engine, and the optimizer inside it, whose rates may be set. torch.distributed must be set up."""
    optimizer = make_optimizer(objective.model, settings.optim, settings.resources.zero_stage)
    trained: list[nn.Parameter] = list(objective.model.trainable().values())
    # DeepSpeed would wait for it for ever, without a word. Young ones may be held on another node with the same home.
    for lock in remove_stale_locks(extensions_folder(), older_than=BUILD_SECONDS):
        LOGGER.warning("removed %s: a build that was killed had left it", lock)
    engine, *_ = deepspeed.initialize(
        model=objective,
        optimizer=optimizer,
        model_parameters=trained,
        config=deepspeed_config(settings, micro_batch, accumulation),
    )
    return engine, optimizer


def open_optimizer(engine: Any, optimizer: Optimizer, model: AdaptedFlux2, micro_batch: int) -> None:
    """Take one step of zero length on blank pictures, so that the optimizer's state exists and can be set.

    DeepSpeed makes that state at the first step; zero gradients and a zero rate leave the values as they are.
    """
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    batch = blank_batch(model, micro_batch).to(engine.device)
    for _ in range(engine.gradient_accumulation_steps()):
        loss, _ = engine(batch)
        engine.backward(0.0 * loss)
        engine.step()


def blank_batch(model: AdaptedFlux2, pictures: int) -> Batch:
    """The smallest pictures that every part of the loss takes: a perceptual network halves them five times."""
    side = max(2, -(-64 // model.patch_size))
    picture, config = (pictures, 3, side * model.patch_size, side * model.patch_size), model.transformer.config
    return Batch(
        images=torch.zeros(picture),
        z_0=torch.zeros(pictures, side * side, config.in_channels),
        text=torch.zeros(pictures, 1, config.joint_attention_dim),
        text_mask=torch.ones(pictures, 1).bool(),
        noise=torch.zeros(picture),
        sigma=torch.full((pictures,), 0.5),
        weight=torch.ones(pictures),
        keys=[""] * pictures,
        key_sums=torch.zeros(pictures).double(),
    )


def set_learning_rates(optimizer: Optimizer, step: int, optim: Optim) -> None:
    """Warm-up, the peak, and a cool-down where one is set; a function of the step alone."""
    rising = step / optim.warmup_steps if optim.warmup_steps else 1.0
    falling = (optim.steps - step + 1) / optim.cooldown_steps if optim.cooldown_steps else 1.0
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * min(1.0, rising, falling)


def set_clip(engine: Any, step: int, optim: Optim) -> None:
    """The gradient norm's limit, which holds from `optim.clip_from` on, as the released weights were trained."""
    engine.optimizer.clip_grad = optim.clip if step >= optim.clip_from else math.inf


def backward_and_step(engine: Any, micro_batches: list[Batch]) -> list[dict[str, torch.Tensor]]:
    """One optimizer step. Returns each micro-batch's terms, tensors (B,) on the engine's device.

    A loss that is not finite makes the whole gradient so, on every worker, and the step is skipped: `was_skipped`.
    """
    collected = []
    for micro_batch in micro_batches:
        micro_batch = micro_batch.to(engine.device)
        loss, terms = engine(micro_batch)
        engine.backward(loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan))
        engine.step()
        collected.append(
            {"sigma": micro_batch.sigma, "weight": micro_batch.weight, "key_sums": micro_batch.key_sums, **terms}
        )
    return collected


def was_skipped(engine: Any) -> bool:
    return bool(engine.optimizer.overflow)


def gradient_norm(engine: Any) -> float:
    """Of the last step, before clipping."""
    return float(engine.get_global_grad_norm() or 0.0)
