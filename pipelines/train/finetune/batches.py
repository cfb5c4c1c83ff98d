"""Batches of the finetune: images with their latents and the embeddings of their captions."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from asymflow.models.text import pad_embeddings
from asymflow.schedule import shift_sigma
from pipelines.data.datasets import decode_batch
from pipelines.data.embeddings import LatentSource, PendingTensors, Source
from pipelines.train import data_loader as base
from pipelines.train import task
from pipelines.train.data_loader import Column, Common, to_uniform
from pipelines.train.mixed_order import Order
from pipelines.train.task import Tokens


@dataclass(frozen=True)
class Pending:
    """Requests of a share."""

    latents: PendingTensors
    text: PendingTensors
    reference_latents: PendingTensors
    """Of all reference images, row by row"""
    keys: list[str]
    references: list[list[bytes]]
    """Encoded reference images of each row; empty if there are none"""


@dataclass
class Batch(task.Batch):
    """A micro-batch with latents and text embeddings."""

    z_0: Tensor
    """(B, N, d) latent tokens"""
    text: Tensor
    """(B, T, E), zero-padded"""
    text_mask: Tensor
    """(B, T), True for real tokens"""
    references: Tensor | None = None
    """(B, R, 3, H, W) reference images of edits, sRGB in [-1, 1]"""
    reference_latents: Tensor | None = None
    """(B, R, N, d) their latent tokens"""

    @property
    def tokens(self) -> Tokens:
        """Return the token counts."""
        count, image = self.z_0.shape[:2]
        reference = 0 if self.reference_latents is None else self.reference_latents[0, :, :, 0].numel()
        return Tokens(int(self.text_mask.sum()) + count * (image + reference), image, self.text.shape[1], reference)

    def inputs(self) -> dict[str, Tensor]:
        """Return the objective's arguments by name."""
        given = {**super().inputs(), "z_0": self.z_0, "text": self.text, "text_mask": self.text_mask}
        if self.references is None or self.reference_latents is None:
            return given
        return given | {"references": self.references, "reference_latents": self.reference_latents}


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
        order: Order,
        batch: int,
        rank: int,
        workers: int,
        text: Source,
        latents: LatentSource,
        unconditional: Tensor,
        noise: NoiseSettings,
        ahead: int = 8,
    ):
        super().__init__(order, batch, rank, workers, ahead)
        self.text, self.latents, self.unconditional, self.noise = text, latents, unconditional, noise
        self.columns = (latents.column, text.column, *dict.fromkeys(("references", latents.reference_column)))

    def request(self, column: Column) -> Pending:
        """Request the latents and text embeddings of a share."""
        # dropped captions too: which they are is known only once the noise is generated
        latents, text = self.latents.request(column(self.latents.column)), column(self.text.column)
        references = [one for row in column(self.latents.reference_column) for one in row]
        pending = self.latents.request(references) if references else list
        return Pending(latents, self.text.request(text), pending, column("key"), column("references"))

    def batch_maker(self, pending: Pending, normals: Tensor) -> Callable[[list[int], Common], Batch]:
        """Return a function that builds a batch from some of the samples of a share."""
        latents, text, reference_latents = pending.latents(), pending.text(), pending.reference_latents()
        references = [decode_references(*row) for row in zip(pending.references, pending.keys, strict=False)]
        dropped = to_uniform(normals[:, 0]) < self.noise.caption_dropout
        chosen_text = zip(text, dropped, strict=True)
        given = [(self.unconditional if drop else embedding).float() for embedding, drop in chosen_text]

        def make(chosen: list[int], common: Common) -> Batch:
            padded, mask = pad_embeddings([given[i] for i in chosen])
            sigma = torch.sigmoid(self.noise.mean + self.noise.std * common.normal)
            batch = Batch(
                common.images, common.noise, shift_sigma(sigma, self.noise.shift), *common[3:],
                z_0=torch.stack([latents[i] for i in chosen]).float(), text=padded, text_mask=mask,
            )  # fmt: skip
            if not references:
                return batch
            number = len(references[0])
            of_rows = [torch.stack(list(reference_latents[i * number : (i + 1) * number])) for i in chosen]
            images = torch.stack([references[i] for i in chosen])
            return replace(batch, references=images, reference_latents=torch.stack(of_rows).float())

        return make


def decode_references(encoded: list[bytes], key: str) -> Tensor:
    """Return the reference images (R, 3, H, W) of an edit, sRGB in [-1, 1].

    Raises:
        ValueError: one is damaged, or their sizes differ.
    """
    try:
        return decode_batch(encoded)
    except ValueError as error:
        raise ValueError(f"the reference images of {key!r} cannot be read ({error}); curate again") from None
