"""What a training needs to go on, gathered whole: any number of workers and any ZeRO stage can read it.

The trainable state is small (353M numbers for the 9B model); DeepSpeed's own checkpoints can only be read by as many
ranks as wrote them.
"""

import json
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.utils import (
    lazy_init_hp_params_optimizer_state,
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")


class TrainableState:
    """The engine's trainable values and their Adam moments, by name, whatever the ZeRO stage."""

    def __init__(self, engine: Any, parameters: dict[str, nn.Parameter]):
        self.engine, self.parameters = engine, parameters
        self.sharded = engine.zero_optimization()

    def values(self) -> dict[str, Tensor]:
        """Float32 values. A collective call: every rank makes it."""
        return {name: self._get(p).detach() for name, p in self.parameters.items()}

    def moments(self) -> dict[str, dict[str, Tensor]]:
        """Adam's two moments. A collective call."""
        self._link_moments()
        return {key: {name: self._get_moment(p, key) for name, p in self.parameters.items()} for key in MOMENTS}

    def restore(self, values: dict[str, Tensor], moments: dict[str, dict[str, Tensor]], step: int) -> None:
        """Set values and moments. The optimizer's state must exist: take one step of zero length first."""
        self._link_moments()
        for name, p in self.parameters.items():
            value = values[name].to(p.device)
            if self.sharded:
                safe_set_full_fp32_param(p, value)
            with deepspeed.zero.GatheredParameters([p], modifier_rank=0, enabled=self._partitioned(p)):
                p.data.copy_(value)  # the working copy too: ZeRO refreshes it only after a step
            for key in MOMENTS:
                if self.sharded:
                    safe_set_full_optimizer_state(p, moments[key][name].to(p.device), key)
                else:
                    self.engine.optimizer.state[p][key].copy_(moments[key][name])
        optimizer = getattr(self.engine.optimizer, "optimizer", self.engine.optimizer)
        for state in optimizer.state.values():
            if "step" in state:
                state["step"] = torch.full_like(torch.as_tensor(state["step"]), step)

    def _link_moments(self) -> None:
        """ZeRO-1 and 2 link parameters to their moments after the first group's first step, and find none yet for the
        groups after it (DeepSpeed 0.19): link them again."""
        sharded = self.engine.optimizer
        for group, flat in zip(
            getattr(sharded, "bit16_groups", []), getattr(sharded, "single_partition_of_fp32_groups", []), strict=True
        ):
            lazy_init_hp_params_optimizer_state(group, flat, sharded.optimizer.state)

    def _partitioned(self, p: nn.Parameter) -> bool:
        return hasattr(p, "ds_id")

    def _get(self, p: nn.Parameter) -> Tensor:
        if p.dtype == torch.float32 and not self._partitioned(p):
            return p.data
        return safe_get_full_fp32_param(p)

    def _get_moment(self, p: nn.Parameter, key: str) -> Tensor:
        return safe_get_full_optimizer_state(p, key) if self.sharded else self.engine.optimizer.state[p][key]


def write_checkpoint(
    folder: Path, values: dict[str, Tensor], average: dict[str, Tensor], moments: dict[str, dict], record: dict
) -> None:
    """`record` is JSON: the step, the seed, the loss curve so far."""
    for name, tensors in {"trainable": values, "average": average, **moments}.items():
        save_file({k: v.cpu().contiguous() for k, v in tensors.items()}, folder / f"{name}.safetensors")
    (folder / "record.json").write_text(json.dumps(record))


def read_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, dict[str, Tensor]], dict]:
    """(values, average, moments, record) as written."""
    values, average = load_file(folder / "trainable.safetensors"), load_file(folder / "average.safetensors")
    moments = {key: load_file(folder / f"{key}.safetensors") for key in MOMENTS}
    return values, average, moments, json.loads((folder / "record.json").read_text())
