"""Batches of training from scratch: images, randomly mirrored, with their labels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipelines.train import data_loader as base
from pipelines.train import task
from pipelines.train.data_loader import Column, Common, to_uniform
from pipelines.train.pretrain.config import PretrainSettings
from pipelines.train.sample_order import SampleOrder
from pipelines.train.task import Tokens


@dataclass
class Batch(task.Batch):
    """A micro-batch with class labels."""

    labels: Tensor
    """(B,), the number of classes if the label is dropped"""
    patch_size: int

    @property
    def tokens(self) -> Tokens:
        """Return the token counts."""
        count, _, height, width = self.images.shape
        image = height // self.patch_size * (width // self.patch_size)
        return Tokens(count * image, image)

    def inputs(self) -> dict[str, Tensor]:
        """Return the objective's arguments by name."""
        return {**super().inputs(), "labels": self.labels}


class BatchLoader(base.BatchLoader):
    """Loads batches with class labels."""

    columns: Sequence[str] = ("label",)
    normals_per_sample = 2  # whether the label is dropped, and whether the image is mirrored

    def __init__(self, settings: PretrainSettings, order: SampleOrder, rank: int, workers: int):
        super().__init__(order, settings.optim.batch, rank, workers)
        self.settings = settings

    def request(self, column: Column) -> list[int]:
        """Return the labels of a share."""
        return column("label")

    def batch_maker(self, pending: list[int], normals: Tensor) -> Callable[[list[int], Common], Batch]:
        """Return a function that builds a batch from some of the samples of a share."""
        settings, labels = self.settings, torch.tensor(pending)
        if not ((labels >= 0) & (labels < settings.classes)).all():
            raise ValueError(f"label {int(labels.max())} is out of range for classes={settings.classes}; see `classes`")
        uniform = to_uniform(normals)
        labels = torch.where(uniform[:, 0] < settings.loss.class_dropout, settings.classes, labels)
        mirrored = (uniform[:, 1] < 0.5) & settings.flip

        def make(chosen: list[int], common: Common) -> Batch:
            turned = torch.where(mirrored[chosen][:, None, None, None], common.images.flip(-1), common.images)
            sigma = torch.sigmoid(settings.time.mean + settings.time.std * common.normal)
            return Batch(
                turned, common.noise, sigma, *common[3:], labels=labels[chosen], patch_size=settings.network.patch_size
            )

        return make
