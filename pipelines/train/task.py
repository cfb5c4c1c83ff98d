"""What a kind of training brings to the loop; each worker makes its own."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, Self

import torch
from PIL import Image
from torch import Tensor, nn

from asymflow.ema import MovingAverage
from pipelines.train.config import TrainSettings
from pipelines.train.sample_order import SampleOrder


class Tokens(NamedTuple):
    """Of a batch."""

    all: int
    """Real ones, of all pictures"""
    image: int
    """Of one picture"""
    text: int = 0
    """Of one picture, padding included: they are computed"""


@dataclass
class Batch:
    """A micro-batch of a worker: B pictures of one size. Some may be there only to fill it; their weight is 0."""

    images: Tensor
    """(B, 3, H, W) sRGB in [-1, 1]"""
    noise: Tensor
    """(B, 3, H, W)"""
    sigma: Tensor
    """(B,)"""
    weight: Tensor
    """(B,); the mean of weight x loss over all that the workers hold in a step is the sum of its pictures' losses over
    the batch size: every picture weighs the same, also in a bucket's last batch"""
    keys: list[str]
    key_sums: Tensor
    """(B,) float64, CRC-32 of the key, 0 for what fills the batch; their sum tells what was trained on"""

    @property
    def tokens(self) -> Tokens:
        raise NotImplementedError

    def inputs(self) -> dict[str, Tensor]:
        """Return what the objective is called with, by name. Subclasses add theirs."""
        return {"images": self.images, "noise": self.noise, "sigma": self.sigma, "weight": self.weight}

    def to(self, device: torch.device) -> Self:
        tensors: dict[str, Any] = {name: v for name, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **{name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()})


class Reader(Protocol):
    """A worker's batches: a pure function of the seed and the step, made in the background."""

    waited: float
    """Seconds that the last batches were waited for"""
    order: SampleOrder

    def from_step(self, step: int, micro_batch: int) -> Iterator[list[Any]]:
        """For each step, counted from 0, its micro-batches: this worker's share of the global batch."""
        ...


class Task(Protocol):
    """What is trained, on what, and how it is looked at. A model has `trainable()`: its parameters by name."""

    model: Any

    @property
    def settings(self) -> TrainSettings: ...

    @property
    def objective(self) -> nn.Module:
        """A batch's `inputs` in, (loss, terms by image) out: what DeepSpeed wraps."""
        ...

    @property
    def reader(self) -> Reader: ...

    def parameter_groups(self) -> list[dict[str, Any]]:
        """For the optimizer; `peak` is a group's learning rate."""
        ...

    def moving_average(self, values: Mapping[str, Tensor]) -> MovingAverage: ...

    def blank_batch(self, pictures: int) -> Any:
        """The smallest that every part of the loss takes."""
        ...

    def step_flops(self, tokens: Tokens) -> float:
        """What the method asks for in a step on pictures of this size."""
        ...

    def draw(self, device: torch.device) -> Image.Image:
        """Pictures of the weights that the model has now: a collective call, the same on every rank."""
        ...


MakeTask = Callable[[dict[str, Any], int, int], Task]
"""(config, rank, workers): a task's class"""
