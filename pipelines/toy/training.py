"""The loop that the toy's parts share: cosine learning rate, a log, and checkpoints that a rerun goes on from."""

import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from asymflow.atomic import atomic_file


def adamw(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.99), weight_decay=1e-4)


def train(
    name: str,
    model: nn.Module,
    loss_of: Callable[[int, torch.Generator], Tensor],
    folder: Path,
    steps: int,
    optimizers: Sequence[torch.optim.Optimizer],
    report: Callable[[], dict[str, float]],
    ema: float = 0.999,
    report_every: int = 250,
) -> nn.Module:
    """Minimize `loss_of(step, generator)` over `model`; returns the model holding its moving average.

    Each step's generator is seeded by the step alone, so that an interrupted run continues as it would have gone.
    The optimizers' learning rates are the peaks of a cosine schedule. `report` is called on the averaged weights every
    `report_every` steps; its numbers go to `NAME.log`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / f"{name}.pt"
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    peaks = [group["lr"] for group in groups]
    average = {k: v.detach().clone() for k, v in model.state_dict().items()}
    start = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, held in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(held)
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        average, start = state["average"], state["step"]
    since = time.monotonic()
    for step in range(start, steps):
        progress = step / steps
        warm = min(1.0, (step + 1) / 100)
        for group, peak in zip(groups, peaks, strict=True):
            group["lr"] = peak * warm * (0.02 + 0.98 * (0.5 + 0.5 * math.cos(progress * math.pi)))
        loss = loss_of(step, torch.Generator().manual_seed(step))
        model.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        decay = min(ema, (step + 1) / (step + 10))
        for key, value in model.state_dict().items():
            if value.is_floating_point():
                average[key].lerp_(value, 1 - decay)
            else:
                average[key].copy_(value)
        if (step + 1) % report_every == 0 or step + 1 == steps:
            current = {k: v.clone() for k, v in model.state_dict().items()}
            model.load_state_dict(average)
            line = {"step": step + 1, "loss": loss.item(), "seconds": round(time.monotonic() - since, 1), **report()}
            model.load_state_dict(current)
            print(name, json.dumps(line), flush=True)
            with open(folder / f"{name}.log", "a") as log:
                log.write(json.dumps(line) + "\n")
            held = [optimizer.state_dict() for optimizer in optimizers]
            state = {"model": current, "optimizers": held, "average": average, "step": step + 1}
            with atomic_file(checkpoint) as partial:
                torch.save(state, partial)
    model.load_state_dict(average)
    return model
