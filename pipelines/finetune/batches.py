"""Which pictures a step trains on, and the noise they get: pure functions of the seed and the step.

So a run that was stopped goes on with the very sample it would have had next, and the content of a global batch
does not depend on the number of workers. Row groups are shuffled each epoch, and the rows inside windows of them:
a worker holds one window, whatever the size of the data set. Nothing is dropped at the end of an epoch; a batch
reaches into the next one. Rows are read, and their embeddings asked for, a step ahead.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from asymflow.models.text import pad_embeddings
from asymflow.samplers import noise_for
from asymflow.schedule import shift_sigma
from pipelines.datasets import pixels_of, rows_by_group
from pipelines.embeddings import Promise, TextSource
from pipelines.tensors import read_group


@dataclass(frozen=True)
class RowGroup:
    """Rows of one parquet row group, the same in the curated file and in those of latents and of text."""

    curated: str
    latents: str
    text: str
    group: int
    rows: int


def list_row_groups(curated: list[str], latents: list[str], text: list[str]) -> list[RowGroup]:
    """The row groups of lists of files that match row for row. Raises ValueError where they do not."""
    groups = []
    for files in zip(curated, latents, text, strict=True):
        rows, *others = (rows_by_group(file) for file in files)
        if others != [rows, rows]:
            raise ValueError(f"{', '.join(files)} have other rows: encode the curated artifact again")
        groups += [RowGroup(*files, i, n) for i, n in enumerate(rows)]
    return groups


@dataclass(frozen=True)
class Place:
    """Where the sample with a global number lies."""

    number: int
    group: RowGroup
    row: int


class SampleOrder:
    """The endless sequence of samples: number -> place. Epoch e holds numbers e N to (e + 1) N - 1, each row once."""

    def __init__(self, groups: list[RowGroup], seed: int, window: int):
        self.groups, self.seed, self.window = groups, seed, window
        self.rows = sum(g.rows for g in groups)

    def from_number(self, start: int) -> Iterator[Place]:
        """Places from a sample number on. Reaching the start costs one shuffle of row groups, not a replay."""
        epoch, position = divmod(start, self.rows)
        number = start
        while True:
            for index, window in enumerate(self._windows(epoch)):
                size = sum(g.rows for g in window)
                if position >= size:
                    position -= size
                    continue
                for group, row in self._shuffled(window, epoch, index)[position:]:
                    yield Place(number, group, row)
                    number += 1
                position = 0
            epoch += 1

    def _windows(self, epoch: int) -> Iterator[list[RowGroup]]:
        order = list(self.groups)
        random.Random(f"{self.seed} {epoch}").shuffle(order)
        for i in range(0, len(order), self.window):
            yield order[i : i + self.window]

    def _shuffled(self, window: list[RowGroup], epoch: int, index: int) -> list[tuple[RowGroup, int]]:
        """By the window's place in the epoch, not by its files' names: the same pictures elsewhere, the same run."""
        rows = [(g, row) for g in window for row in range(g.rows)]
        random.Random(f"{self.seed} {epoch} {index}").shuffle(rows)
        return rows


@dataclass
class Batch:
    """A worker's share of a global batch; tensors of B pictures."""

    images: Tensor
    """(B, 3, H, W) sRGB in [-1, 1]"""
    z_0: Tensor
    """(B, N, d) latent tokens"""
    text: Tensor
    """(B, T, E), zero-padded"""
    text_mask: Tensor
    """(B, T), True for real tokens"""
    noise: Tensor
    """(B, 3, H, W)"""
    sigma: Tensor
    """(B,)"""

    def to(self, device: torch.device) -> "Batch":
        return Batch(**{name: tensor.to(device, non_blocking=True) for name, tensor in vars(self).items()})


@dataclass(frozen=True)
class NoiseSettings:
    """Law of the noise levels, and the share of captions dropped."""

    mean: float
    std: float
    shift: float
    caption_dropout: float


@dataclass(frozen=True)
class Sample:
    """One row, read but not decoded."""

    number: int
    image: bytes
    z_0: Tensor
    """(N, d) bfloat16"""
    text: Promise


class BatchReader:
    """A worker's batches from a step on."""

    def __init__(
        self,
        order: SampleOrder,
        batch: int,
        rank: int,
        workers: int,
        text: TextSource,
        unconditional: Tensor,
        noise: NoiseSettings,
    ):
        self.order, self.batch, self.rank, self.share = order, batch, rank, batch // workers
        self.text, self.unconditional, self.noise = text, unconditional, noise
        self.cache: dict[tuple[str, int], dict[str, Any]] = {}

    def from_step(self, step: int, micro_batch: int) -> Iterator[list[Batch]]:
        """For each step its micro-batches: this worker's rows of the global batch, in order."""
        places = self.order.from_number(step * self.batch)
        ahead = self._next_samples(places)
        while True:
            samples, ahead = ahead, self._next_samples(places)
            yield [self._decode(samples[i : i + micro_batch]) for i in range(0, self.share, micro_batch)]

    def _next_samples(self, places: Iterator[Place]) -> list[Sample]:
        everyone = [next(places) for _ in range(self.batch)]
        self._forget_all_but(everyone)
        return [self._read(place) for place in everyone[self.rank * self.share : (self.rank + 1) * self.share]]

    def _read(self, place: Place) -> Sample:
        group = self._group(place.group)
        row = {name: column[place.row] for name, column in group.items()}
        # even where the caption will be dropped: to know that takes the whole noise
        return Sample(place.number, row["image"], row["latents"], self.text.ask(row))

    def _decode(self, samples: list[Sample]) -> Batch:
        images = pixels_of([sample.image for sample in samples])
        embeddings, levels, noises = [], [], []
        for sample in samples:
            generator = noise_for(self.order.seed, sample.number, (2 + images[0].numel(),))
            level, drop, noise = generator[0], generator[1], generator[2:]
            dropped = 0.5 * (1 + torch.erf(drop / 2**0.5)) < self.noise.caption_dropout
            embeddings.append((self.unconditional if dropped else sample.text()).float())
            levels.append(level)
            noises.append(noise.view_as(images[0]))
        text, mask = pad_embeddings(embeddings)
        sigma = torch.sigmoid(self.noise.mean + self.noise.std * torch.stack(levels))
        return Batch(
            images=images,
            z_0=torch.stack([sample.z_0 for sample in samples]).float(),
            text=text,
            text_mask=mask,
            noise=torch.stack(noises),
            sigma=shift_sigma(sigma, self.noise.shift),
        )

    def _group(self, group: RowGroup) -> dict[str, Any]:
        """The columns of a row group, by name."""
        place = (group.curated, group.group)
        if place not in self.cache:
            files = {"image": group.curated, "latents": group.latents, self.text.column: group.text}
            columns: dict[str, Any] = {}
            for name, file in files.items():
                read = read_group(file, group.group, ["key", name])
                if read["key"] != columns.setdefault("key", read["key"]):
                    raise ValueError(f"{file}: its rows are not those of {group.curated}")
                columns[name] = read[name]
            self.cache[place] = columns
        return self.cache[place]

    def _forget_all_but(self, places: list[Place]) -> None:
        """Keep at most two windows: the one being read and, across an epoch's or window's end, the next."""
        if len(self.cache) > 2 * self.order.window:
            needed = {(p.group.curated, p.group.group) for p in places}
            self.cache = {key: value for key, value in self.cache.items() if key in needed}
