"""Data loader of a worker: prefetched batches of decoded images, their latents or labels, and their noise.

Batches are a pure function of the seed and the step: a resumed run continues with the same samples. Row groups are read
several steps ahead, requests to other processes are made two steps ahead, and the batches of the next step are
assembled while the present one is trained on.
"""

import time
import zlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from asymflow.samplers import noise_for
from pipelines.data.images import BadImage, decode_image, to_array
from pipelines.train.mixed_order import Order
from pipelines.train.row_groups import RowGroupPrefetcher
from pipelines.train.sample_order import SampleLocation, Share, share_of, slots_per_worker
from pipelines.train.task import Batch

Column = Callable[[str], list]
"""Returns the values of a share's rows in a column; none of a column of references if they are not edits"""


class Common(NamedTuple):
    """Fields of every batch; see `Batch`, whose `sigma` is computed from `normal`."""

    images: Tensor
    noise: Tensor
    normal: Tensor
    """(B,) from the standard normal distribution"""
    weight: Tensor
    keys: list[str]
    key_sums: Tensor


@dataclass(frozen=True)
class PendingShare:
    """A share whose rows are read but not decoded, with its pending requests."""

    share: Share
    keys: list[str]
    images: list[bytes]
    rest: Any


class BatchLoader(ABC):
    """Loads a worker's batches; a subclass adds their fields besides images and noise."""

    columns: Sequence[str] = ()
    """Columns read besides the images"""
    normals_per_sample = 0
    """Normal values per sample besides its noise and its noise level"""
    waited = 0.0
    """Seconds spent waiting for the last batches"""

    def __init__(self, order: Order, batch: int, rank: int, workers: int, ahead: int = 8):
        """Prepare a loader.

        Args:
            order: sample order.
            batch: global batch size.
            rank: this worker.
            workers: number of workers.
            ahead: steps whose row groups are prefetched.
        """
        self.order, self.batch, self.rank, self.workers, self.ahead = order, batch, rank, workers, ahead

    @abstractmethod
    def request(self, column: Column) -> Any:
        """Start what a share needs besides its rows; the result is passed to `batch_maker` two steps later."""

    @abstractmethod
    def batch_maker(self, pending: Any, normals: Tensor) -> Callable[[list[int], Common], Batch]:
        """Return a function that builds a batch from some of the samples of a share.

        Args:
            pending: result of `request`.
            normals: (locations, normals_per_sample) normal values.
        """

    def from_step(self, step: int, micro_batch: int, pinned: bool = False) -> Iterator[list[Batch]]:
        """Yield for each step, counted from 0, its micro-batches: this worker's share of the global batch.

        With `pinned` they are in pinned memory, into which the background thread copies them. Exceptions of that thread
        are raised at the step they belong to. The thread ends with the iterator.
        """
        slots = slots_per_worker(self.batch, self.workers, micro_batch)
        shares = (self._share(s, slots) for s in count(step))
        rows = RowGroupPrefetcher(shares, ("image", *self.columns), self.ahead)
        background = ThreadPoolExecutor(1, "batches", initializer=limit_to_one_processor)
        try:
            pending = deque(background.submit(self._read_share, rows) for _ in range(2))
            made = background.submit(self._make, pending.popleft(), micro_batch, pinned)
            while True:
                pending.append(background.submit(self._read_share, rows))
                ready, made = made, background.submit(self._make, pending.popleft(), micro_batch, pinned)
                started = time.monotonic()
                batches = ready.result()
                self.waited = time.monotonic() - started
                yield batches
        finally:
            background.shutdown(wait=False, cancel_futures=True)
            rows.close()

    def _share(self, step: int, slots: int) -> Share:
        return share_of(self.order.batch_at(step, self.batch), self.rank, self.workers, slots)

    def _read_share(self, rows: RowGroupPrefetcher) -> PendingShare:
        share, read = rows.take()

        def column(name: str) -> list:
            rows = zip(share.locations, read, strict=True)
            return [columns[name][location.row] for location, columns in rows if name in columns]

        return PendingShare(share, column("key"), column("image"), self.request(column))

    def _make(self, reading: Future[PendingShare], micro_batch: int, pinned: bool) -> list[Batch]:
        pending = reading.result()
        share, keys = pending.share, pending.keys
        pixels = [decode(*item) for item in zip(pending.images, share.locations, keys, strict=True)]
        noise_and_normals = [self._noise_of(location.number, pixels[0].shape) for location in share.locations]
        make = self.batch_maker(pending.rest, torch.stack([values[1:] for _, values in noise_and_normals]))
        sums, slots = [zlib.crc32(key.encode()) for key in keys], share.fill()
        weight = share.slots * self.workers / self.batch

        def micro(part: list[tuple[int, bool]]) -> Batch:
            chosen, real = [i for i, _ in part], torch.tensor([counts for _, counts in part])
            common = Common(
                images=torch.stack([pixels[i] for i in chosen]).float() / 127.5 - 1,
                noise=torch.stack([noise_and_normals[i][0] for i in chosen]),
                normal=torch.stack([noise_and_normals[i][1][0] for i in chosen]),
                weight=weight * real.float(),
                keys=[keys[i] for i in chosen],
                key_sums=torch.tensor([sums[i] for i in chosen], dtype=torch.float64) * real,
            )
            batch = make(chosen, common)
            return batch.pin_memory() if pinned else batch

        return [micro(slots[i : i + micro_batch]) for i in range(0, share.slots, micro_batch)]

    def _noise_of(self, number: int, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """Return a sample's noise, and its normal values: the noise level's and `normals_per_sample` more."""
        first = 1 + self.normals_per_sample
        values = noise_for(self.order.seed, number, (first + shape.numel(),))
        return values[first:].view(shape), values[:first]


def to_uniform(normal: Tensor) -> Tensor:
    """Return normal values mapped to the uniform distribution on [0, 1]."""
    return 0.5 * (1 + torch.erf(normal / 2**0.5))


def decode(image: bytes, location: SampleLocation, key: str) -> Tensor:
    """Return an image as (3, H, W) uint8.

    Raises:
        ValueError: the image is damaged, or its size is not its bucket's.
    """
    width, height = location.group.size
    try:
        pixels = to_array(decode_image(image))
    except BadImage as error:
        raise ValueError(f"{location.group.curated}: the image of {key!r} is damaged ({error}); curate again") from None
    if pixels.shape != (height, width, 3):
        found = f"{pixels.shape[1]}x{pixels.shape[0]}, not {width}x{height} as in its row"
        raise ValueError(f"{location.group.curated}: the image of {key!r} is {found}; curate again")
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def limit_to_one_processor() -> None:
    """Limit a background thread to one processor, so that the training keeps the others."""
    torch.set_num_threads(1)
