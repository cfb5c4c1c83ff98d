"""Training state, gathered whole from the engine, independent of the number of workers and the ZeRO stage.

The trainable state is small (353M numbers for the 9B model); DeepSpeed's own checkpoints can only be read by as many
ranks as wrote them. Every method here is a collective call.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import (
    lazy_init_hp_params_optimizer_state,
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from torch import Tensor, nn

from pipelines.train.checkpoint import Tensors

ADAM = ("exp_avg", "exp_avg_sq")
_CONSTANT = ("step", "qmap1", "qmap2")  # the codebooks of an 8-bit optimizer are constant


class TrainableState:
    """The engine's trainable values and their optimizer state, by name, for any ZeRO stage."""

    def __init__(self, engine: Any, parameters: dict[str, nn.Parameter]):
        self.engine, self.parameters = engine, parameters
        self.sharded = engine.zero_optimization()

    def values(self) -> dict[str, Tensor]:
        """Return the float32 values; not copies where every worker holds them whole."""
        return {name: self._get(p).detach() for name, p in self.parameters.items()}

    def moments(self) -> dict[str, dict[str, Tensor]]:
        """Return the optimizer's state: {kind: {name: tensor}}, with the optimizer's own names of kinds."""
        if self.sharded:
            self._link_moments()
            return {
                kind: {name: safe_get_full_optimizer_state(p, kind) for name, p in self.parameters.items()}
                for kind in ADAM
            }
        found: dict[str, dict[str, Tensor]] = {}
        for name, kind, tensor in self._unsharded():
            found.setdefault(kind, {})[name] = tensor
        return found

    def restore(self, tensors: Tensors | None, applied: int) -> None:
        """Set values and optimizer state from rank 0's tensors.

        The optimizer's state must exist: take one step of zero length first.

        Args:
            tensors: rank 0's tensors; None on other ranks.
            applied: optimizer steps applied so far.
        """
        for name, p in self.parameters.items():
            value = self._from_first(tensors, "trainable", name, p)
            if self.sharded:
                safe_set_full_fp32_param(p, value)
            self._write(p, value)
        if self.sharded:
            self._link_moments()
            for kind in ADAM:
                for name, p in self.parameters.items():
                    moment = self._from_first(tensors, kind, name, p)
                    safe_set_full_optimizer_state(p, moment, kind)
        else:
            for name, kind, tensor in self._unsharded():
                tensor.copy_(self._from_first(tensors, kind, name, tensor))
        for state in self._optimizer().state.values():
            if "step" in state:
                is_tensor = isinstance(state["step"], Tensor)
                state["step"] = torch.full_like(state["step"], applied) if is_tensor else applied

    def average_from(self, tensors: Tensors | None) -> dict[str, Tensor]:
        """Return rank 0's moving average, on all ranks."""
        return {name: self._from_first(tensors, "average", name, p) for name, p in self.parameters.items()}

    @contextmanager
    def swapped(self, values: Mapping[str, Tensor]) -> Iterator[None]:
        """Swap in other values within the context; afterwards the own values are restored bit by bit."""
        kept = {name: value.clone() for name, value in self.values().items()}
        try:
            for name, p in self.parameters.items():
                self._write(p, values[name])
            yield
        finally:
            for name, p in self.parameters.items():
                self._write(p, kept[name])

    def _write(self, p: nn.Parameter, value: Tensor) -> None:
        """Set the values used in computations, which ZeRO refreshes only after a step."""
        with deepspeed.zero.GatheredParameters([p], modifier_rank=0, enabled=_partitioned(p)):
            p.data.copy_(value)

    def _unsharded(self) -> Iterator[tuple[str, str, Tensor]]:
        """Yield (name, kind, tensor) of the optimizer's own state."""
        for name, p in self.parameters.items():
            for kind, value in self.engine.optimizer.state[p].items():
                if isinstance(value, Tensor) and kind not in _CONSTANT:
                    yield name, kind, value

    def _optimizer(self) -> torch.optim.Optimizer:
        return self.engine.optimizer.optimizer if self.sharded else self.engine.optimizer

    def _link_moments(self) -> None:
        """Link parameters to their moments again.

        ZeRO-1 and 2 link them after the first group's first step, and find none yet for later groups (DeepSpeed 0.19).
        """
        sharded = self.engine.optimizer
        for group, flat in zip(
            getattr(sharded, "bit16_groups", []), getattr(sharded, "single_partition_of_fp32_groups", []), strict=True
        ):
            lazy_init_hp_params_optimizer_state(group, flat, sharded.optimizer.state)

    def _get(self, p: nn.Parameter) -> Tensor:
        return safe_get_full_fp32_param(p) if _partitioned(p) else p.data

    def _from_first(self, tensors: Tensors | None, kind: str, name: str, like: Tensor) -> Tensor:
        """Return rank 0's tensor, in the shape and type of `like`, on every rank's device."""
        shape = _full_shape(like)
        if tensors is None:
            received = torch.empty(shape, dtype=like.dtype, device=self.engine.device)
        else:
            received = tensors[kind][name].to(self.engine.device, like.dtype).contiguous()
            if received.shape != shape:
                raise ValueError(f"{kind} of {name} is {list(received.shape)} in the checkpoint, not {list(shape)}")
        dist.broadcast(received, 0)
        return received


def _full_shape(p: Any) -> torch.Size:
    return p.ds_shape if _partitioned(p) else p.shape


def _partitioned(p: Tensor) -> bool:
    return hasattr(p, "ds_id")


def copy_to_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies on the CPU that no later step changes."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
