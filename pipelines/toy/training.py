"""Training loop of the toy's parts: cosine learning rate, a log, and checkpoints from which a rerun resumes."""

import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from asymflow.atomic import atomic_file
from asymflow.ema import ConstantEMA


def adamw(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.AdamW:
    """Return AdamW with the toy's betas and weight decay."""
    return torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.99), weight_decay=1e-4)


class _WarmEMA(ConstantEMA):
    """Moving average with a constant decay, smaller in the first steps so that the initial weights are forgotten."""

    def decay_at(self, step: int) -> float:
        return min(self.decay, step / (step + 9))


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
    """Minimize a loss over a model's parameters.

    Args:
        name: Name of the files NAME.pt (checkpoint) and NAME.log.
        model: The model, trained in place.
        loss_of: Returns the loss of a step from its index and a generator that is seeded by the index alone, so that
            a resumed run equals an uninterrupted one.
        folder: Folder of the files.
        steps: Optimizer steps.
        optimizers: Optimizers of disjoint parameters; their learning rates are the peaks of a cosine schedule.
        report: Called with the averaged weights in the model every `report_every` steps; its numbers are logged.
        ema: Decay of the moving average.
        report_every: Steps between reports and checkpoints.

    Returns:
        The model with its averaged weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / f"{name}.pt"
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    peaks = [group["lr"] for group in groups]
    average = _WarmEMA(dict(model.named_parameters()), ema)
    start = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, states in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(states)
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        average.load_state_dict(state["average"])
        start = state["step"]
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
        average.update(step + 1)
        if (step + 1) % report_every == 0 or step + 1 == steps:
            with average.swap():
                measured = report()
            line = {"step": step + 1, "loss": loss.item(), "seconds": round(time.monotonic() - since, 1), **measured}
            print(name, json.dumps(line), flush=True)
            with open(folder / f"{name}.log", "a") as log:
                log.write(json.dumps(line) + "\n")
            states = [optimizer.state_dict() for optimizer in optimizers]
            state = {"model": model.state_dict(), "optimizers": states, "average": average.average, "step": step + 1}
            with atomic_file(checkpoint) as partial:
                torch.save(state, partial)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            parameter.copy_(average.average[parameter_name])
    return model
