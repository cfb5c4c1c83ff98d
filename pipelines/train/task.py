"""Interface of a task: what the training loop trains. Each worker makes its own."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, Self

import torch
from PIL import Image
from torch import Tensor, nn

from asymflow.ema import MovingAverage
from pipelines.train.config import TrainSettings
from pipelines.train.mixed_order import Order


class Tokens(NamedTuple):
    """Token counts of a batch."""

    all: int
    """Tokens of all images, without padding"""
    image: int
    """Image tokens per image"""
    text: int = 0
    """Text tokens per image, including padding, which is computed"""
    reference: int = 0
    """Tokens of reference images per image"""


@dataclass
class Batch:
    """A worker's micro-batch: B images of one size. Some may be padding; their weight is 0."""

    images: Tensor
    """(B, 3, H, W) sRGB in [-1, 1]"""
    noise: Tensor
    """(B, 3, H, W)"""
    sigma: Tensor
    """(B,)"""
    weight: Tensor
    """(B,); the mean of weight x loss over all slots of a step is the sum of its images' losses over the batch size:
    every image has the same weight, also in a bucket's last batch"""
    keys: list[str]
    key_sums: Tensor
    """(B,) float64, CRC-32 of the key, 0 for padding; their sum identifies the samples of a step"""

    @property
    def tokens(self) -> Tokens:
        """Return the token counts."""
        raise NotImplementedError

    def inputs(self) -> dict[str, Tensor]:
        """Return the objective's arguments by name. Subclasses add theirs."""
        return {"images": self.images, "noise": self.noise, "sigma": self.sigma, "weight": self.weight}

    def to(self, device: torch.device) -> Self:
        """Return the batch with its tensors on a device. From pinned memory the host does not wait for the copy."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Self:
        """Return the batch with its tensors in pinned memory."""
        return self._mapped(Tensor.pin_memory)

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> Self:
        changed: dict[str, Any] = {name: change(v) for name, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **changed)


class DataLoader(Protocol):
    """A worker's data loader: batches are a pure function of the seed and the step, and are prefetched."""

    waited: float
    """Seconds spent waiting for the last batches"""
    order: Order

    def from_step(self, step: int, micro_batch: int, pinned: bool = False) -> Iterator[list[Any]]:
        """Yield for each step, counted from 0, its micro-batches: this worker's share of the global batch.

        Args:
            step: first step.
            micro_batch: images per micro-batch.
            pinned: whether batches are in pinned memory, for a GPU.
        """
        ...


class Task(Protocol):
    """Model, objective, data and validation of a training. The model has `trainable()`: its parameters by name."""

    model: Any

    @property
    def settings(self) -> TrainSettings:
        """Return the settings of the step."""
        ...

    @property
    def objective(self) -> nn.Module:
        """Return the module that DeepSpeed wraps: a batch's `inputs` to (loss, terms by image)."""
        ...

    @property
    def data_loader(self) -> DataLoader:
        """Return this worker's data loader."""
        ...

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the optimizer's parameter groups; `peak` is a group's learning rate."""
        ...

    def moving_average(self, values: Mapping[str, Tensor]) -> MovingAverage:
        """Return a moving average that starts from the trainable values."""
        ...

    def blank_batch(self, count: int) -> Any:
        """Return a batch of the smallest images that every part of the loss accepts."""
        ...

    def step_flops(self, tokens: Tokens) -> float:
        """Return the model FLOPs of a step on images of this size."""
        ...

    def sample_images(self, device: torch.device) -> Image.Image:
        """Return a grid of images sampled with the model's present weights; a collective call on all ranks."""
        ...


MakeTask = Callable[[dict[str, Any], int, int], Task]
"""Class of a task, called with (config, rank, workers)"""
