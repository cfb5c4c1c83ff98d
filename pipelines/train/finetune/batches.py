"""Batches of the finetune: images with their latents and the embeddings of their captions."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from asymflow.models.text import pad_embeddings
from asymflow.schedule import shift_sigma
from pipelines.data.embeddings import PendingTensors, Source
from pipelines.train import data_loader as base
from pipelines.train import task
from pipelines.train.data_loader import Column, Common, to_uniform
from pipelines.train.sample_order import SampleOrder
from pipelines.train.task import Tokens

Pending = tuple[PendingTensors, PendingTensors]
"""Requested latents and text embeddings of a share"""


@dataclass
class Batch(task.Batch):
    """A micro-batch with latents and text embeddings."""

    z_0: Tensor
    """(B, N, d) latent tokens"""
    text: Tensor
    """(B, T, E), zero-padded"""
    text_mask: Tensor
    """(B, T), True for real tokens"""

    @property
    def tokens(self) -> Tokens:
        """Return the token counts."""
        count, image = self.z_0.shape[:2]
        return Tokens(int(self.text_mask.sum()) + count * image, image, self.text.shape[1])

    def inputs(self) -> dict[str, Tensor]:
        """Return the objective's arguments by name."""
        return {**super().inputs(), "z_0": self.z_0, "text": self.text, "text_mask": self.text_mask}


@dataclass(frozen=True)
class NoiseSettings:
    """Distribution of the noise levels, and the share of captions dropped."""

    mean: float
    std: float
    shift: float
    caption_dropout: float


class BatchLoader(base.BatchLoader):
    """Loads batches with latents and text embeddings."""

    normals_per_sample = 1  # whether the caption is dropped

    def __init__(
        self,
        order: SampleOrder,
        batch: int,
        rank: int,
        workers: int,
        text: Source,
        latents: Source,
        unconditional: Tensor,
        noise: NoiseSettings,
        ahead: int = 8,
    ):
        super().__init__(order, batch, rank, workers, ahead)
        self.text, self.latents, self.unconditional, self.noise = text, latents, unconditional, noise
        self.columns = (latents.column, text.column)

    def request(self, column: Column) -> Pending:
        """Request the latents and text embeddings of a share."""
        # dropped captions too: which they are is known only once the noise is generated
        return self.latents.request(column(self.latents.column)), self.text.request(column(self.text.column))

    def batch_maker(self, pending: Pending, normals: Tensor) -> Callable[[list[int], Common], Batch]:
        """Return a function that builds a batch from some of the samples of a share."""
        latents, text = (tensors() for tensors in pending)
        dropped = to_uniform(normals[:, 0]) < self.noise.caption_dropout
        chosen_text = zip(text, dropped, strict=True)
        given = [(self.unconditional if drop else embedding).float() for embedding, drop in chosen_text]

        def make(chosen: list[int], common: Common) -> Batch:
            padded, mask = pad_embeddings([given[i] for i in chosen])
            sigma = torch.sigmoid(self.noise.mean + self.noise.std * common.normal)
            return Batch(
                common.images, common.noise, shift_sigma(sigma, self.noise.shift), *common[3:],
                z_0=torch.stack([latents[i] for i in chosen]).float(), text=padded, text_mask=mask,
            )  # fmt: skip

        return make
