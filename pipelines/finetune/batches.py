"""Which pictures a step trains on, and the noise they get: pure functions of the seed and the step.

So a run that was stopped goes on with the very sample it would have had next, and the content of a global batch
does not depend on the number of workers. Row groups are shuffled each epoch, and the rows inside windows of them:
a worker holds one window, whatever the size of the data set. Nothing is dropped at the end of an epoch; a batch
reaches into the next one.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow.parquet as pq
import torch
from torch import Tensor

from asymflow.models.text import pad_embeddings
from asymflow.samplers import noise_for
from asymflow.schedule import shift_sigma
from pipelines import storage
from pipelines.datasets import pixels_of
from pipelines.encode import from_bf16_bytes


@dataclass(frozen=True)
class RowGroup:
    """Rows of one parquet row group, the same in the curated and in the encoded file."""

    curated: str
    encoded: str
    group: int
    rows: int


def list_row_groups(curated: list[str], encoded: list[str]) -> list[RowGroup]:
    """The row groups of two lists of files that match row for row. Raises ValueError where they do not."""
    groups = []
    for pictures, codes in zip(curated, encoded, strict=True):
        a, b = _metadata(pictures), _metadata(codes)
        rows = [a.row_group(i).num_rows for i in range(a.num_row_groups)]
        if rows != [b.row_group(i).num_rows for i in range(b.num_row_groups)]:
            raise ValueError(f"{pictures} and {codes} have other rows: encode the curated artifact again")
        groups += [RowGroup(pictures, codes, i, n) for i, n in enumerate(rows)]
    return groups


def _metadata(uri: str) -> pq.FileMetaData:
    filesystem, path = storage.open_filesystem(uri)
    return pq.read_metadata(path, filesystem=filesystem)


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


class BatchReader:
    """A worker's batches from a step on."""

    def __init__(
        self,
        order: SampleOrder,
        batch: int,
        rank: int,
        workers: int,
        latent_width: int,
        unconditional: Tensor,
        noise: NoiseSettings,
    ):
        self.order, self.batch, self.rank, self.share = order, batch, rank, batch // workers
        self.latent_width, self.unconditional, self.noise = latent_width, unconditional, noise
        self.cache: dict[tuple[str, int], tuple[dict, dict]] = {}

    def from_step(self, step: int, micro_batch: int) -> Iterator[list[Batch]]:
        """For each step its micro-batches: this worker's rows of the global batch, in order."""
        places = self.order.from_number(step * self.batch)
        while True:
            everyone = [next(places) for _ in range(self.batch)]
            mine = everyone[self.rank * self.share : (self.rank + 1) * self.share]
            self._forget_all_but(everyone)
            yield [self._read(mine[i : i + micro_batch]) for i in range(0, self.share, micro_batch)]

    def _read(self, places: list[Place]) -> Batch:
        rows = [self._row(place) for place in places]
        images = pixels_of([row["image"] for row in rows])
        embeddings, levels, noises = [], [], []
        for place, row in zip(places, rows, strict=True):
            generator = noise_for(self.order.seed, place.number, (2 + images[0].numel(),))
            level, drop, noise = generator[0], generator[1], generator[2:]
            dropped = 0.5 * (1 + torch.erf(drop / 2**0.5)) < self.noise.caption_dropout
            width = self.unconditional.shape[-1]
            embeddings.append(self.unconditional if dropped else from_bf16_bytes(row["text"], width))
            levels.append(level)
            noises.append(noise.view_as(images[0]))
        text, mask = pad_embeddings(embeddings)
        sigma = torch.sigmoid(self.noise.mean + self.noise.std * torch.stack(levels))
        return Batch(
            images=images,
            z_0=torch.stack([from_bf16_bytes(row["latents"], self.latent_width) for row in rows]),
            text=text,
            text_mask=mask,
            noise=torch.stack(noises),
            sigma=shift_sigma(sigma, self.noise.shift),
        )

    def _row(self, place: Place) -> dict:
        pictures, codes = self._group(place.group)
        if pictures["key"][place.row] != codes["key"][place.row]:
            raise ValueError(f"{place.group.encoded}: its rows are not those of {place.group.curated}")
        return {"image": pictures["image"][place.row], **{k: codes[k][place.row] for k in ("latents", "text")}}

    def _group(self, group: RowGroup) -> tuple[dict, dict]:
        key = (group.curated, group.group)
        if key not in self.cache:
            self.cache[key] = (
                _read_group(group.curated, group.group, ["key", "image"]),
                _read_group(group.encoded, group.group, ["key", "latents", "text"]),
            )
        return self.cache[key]

    def _forget_all_but(self, places: list[Place]) -> None:
        """Keep at most two windows: the one being read and, across an epoch's or window's end, the next."""
        if len(self.cache) > 2 * self.order.window:
            needed = {(p.group.curated, p.group.group) for p in places}
            self.cache = {key: value for key, value in self.cache.items() if key in needed}


def _read_group(uri: str, group: int, columns: list[str]) -> dict:
    filesystem, path = storage.open_filesystem(uri)
    with filesystem.open_input_file(path) as source, pq.ParquetFile(source) as file:
        return file.read_row_group(group, columns).to_pydict()
