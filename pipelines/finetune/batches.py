"""A worker's batches: its share of each step's pictures, decoded, with the latents, text and noise that belong to them.

All of it is a pure function of the seed and the step: a run that was stopped goes on with the very sample it would have
had next. It is made in the background: row groups are read several steps ahead, what encoders are to make is asked for
two steps ahead, and the batches of the next step are put together while the present one is trained on.
"""

import time
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asymflow.models.text import pad_embeddings
from asymflow.samplers import noise_for
from asymflow.schedule import shift_sigma
from pipelines.embeddings import Promise, Source
from pipelines.finetune.order import Place, SampleOrder, Share, share_of, slots_per_worker
from pipelines.finetune.rows import ReadAhead
from pipelines.images import BadImage, decode_image, to_array


@dataclass
class Batch:
    """A micro-batch of a worker: B pictures of one size. Some may be there only to fill it; their weight is 0."""

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
    weight: Tensor
    """(B,); the mean of weight x loss over all that the workers hold in a step is the sum of its pictures' losses over
    the batch size: every picture weighs the same, also in a bucket's last batch"""
    keys: list[str]
    key_sums: Tensor
    """(B,) float64, CRC-32 of the key, 0 for what fills the batch; their sum tells what was trained on"""

    def to(self, device: torch.device) -> "Batch":
        tensors: dict[str, Any] = {name: v for name, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **{name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()})


@dataclass(frozen=True)
class NoiseSettings:
    """Law of the noise levels, and the share of captions dropped."""

    mean: float
    std: float
    shift: float
    caption_dropout: float


@dataclass(frozen=True)
class Asked:
    """A share whose rows are read, not decoded, and whose latents and embeddings are asked for."""

    share: Share
    keys: list[str]
    images: list[bytes]
    z_0: Promise
    text: Promise


class BatchReader:
    """A worker's batches from a step on."""

    waited = 0.0
    """Seconds that the last batches were waited for"""

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
        """`ahead`: steps whose row groups are read early."""
        self.order, self.batch, self.rank, self.workers, self.ahead = order, batch, rank, workers, ahead
        self.text, self.latents, self.unconditional, self.noise = text, latents, unconditional, noise

    def from_step(self, step: int, micro_batch: int) -> Iterator[list[Batch]]:
        """For each step, counted from 0, its micro-batches: this worker's share of the global batch.

        What goes wrong in the background is raised at the step it belongs to. The background ends with the iterator.
        """
        slots = slots_per_worker(self.batch, self.workers, micro_batch)
        shares = (self._share(s, slots) for s in count(step))
        rows = ReadAhead(shares, ("image", self.latents.column, self.text.column), self.ahead)
        background = ThreadPoolExecutor(1, "batches", initializer=use_one_processor)
        try:
            asked = deque(background.submit(self._ask, rows) for _ in range(2))
            made = background.submit(self._make, asked.popleft(), micro_batch)
            while True:
                asked.append(background.submit(self._ask, rows))
                ready, made = made, background.submit(self._make, asked.popleft(), micro_batch)
                started = time.monotonic()
                batches = ready.result()
                self.waited = time.monotonic() - started
                yield batches
        finally:
            background.shutdown(wait=False, cancel_futures=True)
            rows.close()

    def _share(self, step: int, slots: int) -> Share:
        return share_of(self.order.batch_at(step, self.batch), self.rank, self.workers, slots)

    def _ask(self, rows: ReadAhead) -> Asked:
        share, read = rows.take()
        places = share.places

        def column(name: str) -> list:
            return [columns[name][place.row] for place, columns in zip(places, read, strict=True)]

        # text even where it will be dropped: to know that takes the whole noise
        z_0, text = self.latents.ask(column(self.latents.column)), self.text.ask(column(self.text.column))
        return Asked(share, column("key"), column("image"), z_0, text)

    def _make(self, asking: Future[Asked], micro_batch: int) -> list[Batch]:
        asked = asking.result()
        share, keys = asked.share, asked.keys
        pixels = [decode(*item) for item in zip(asked.images, share.places, keys, strict=True)]
        drawn = (self._draw(place.number, pixels[0].shape) for place in share.places)
        noises, levels, dropped = zip(*drawn, strict=True)
        given = zip(asked.text(), dropped, strict=True)
        text = [(self.unconditional if drop else embedding).float() for embedding, drop in given]
        z_0, sums = asked.z_0(), [zlib.crc32(key.encode()) for key in keys]
        weight = share.slots * self.workers / self.batch
        slots = share.fill()

        def micro(part: list[tuple[int, bool]]) -> Batch:
            chosen, real = [i for i, _ in part], torch.tensor([counts for _, counts in part])
            padded, mask = pad_embeddings([text[i] for i in chosen])
            sigma = torch.sigmoid(self.noise.mean + self.noise.std * torch.stack([levels[i] for i in chosen]))
            return Batch(
                images=torch.stack([pixels[i] for i in chosen]).float() / 127.5 - 1,
                z_0=torch.stack([z_0[i] for i in chosen]).float(),
                text=padded,
                text_mask=mask,
                noise=torch.stack([noises[i] for i in chosen]),
                sigma=shift_sigma(sigma, self.noise.shift),
                weight=weight * real.float(),
                keys=[keys[i] for i in chosen],
                key_sums=torch.tensor([sums[i] for i in chosen], dtype=torch.float64) * real,
            )

        return [micro(slots[i : i + micro_batch]) for i in range(0, share.slots, micro_batch)]

    def _draw(self, number: int, shape: torch.Size) -> tuple[Tensor, Tensor, bool]:
        """A sample's noise, the normal value that makes its noise level, and whether its caption is dropped."""
        values = noise_for(self.order.seed, number, (2 + shape.numel(),))
        level, drop, noise = values[0], values[1], values[2:].view(shape)
        return noise, level, bool(0.5 * (1 + torch.erf(drop / 2**0.5)) < self.noise.caption_dropout)


def decode(image: bytes, place: Place, key: str) -> Tensor:
    """(3, H, W) uint8. Raises ValueError for damaged pictures and those of another size than their bucket's."""
    width, height = place.group.size
    try:
        pixels = to_array(decode_image(image))
    except BadImage as error:
        raise ValueError(f"{place.group.curated}: the picture of {key!r} is damaged ({error}); curate again") from None
    if pixels.shape != (height, width, 3):
        found = f"{pixels.shape[1]}x{pixels.shape[0]}, its row says {width}x{height}"
        raise ValueError(f"{place.group.curated}: the picture of {key!r} is {found}; curate again")
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def use_one_processor() -> None:
    """In a background thread: parallel loops there would take the processors from the training's."""
    torch.set_num_threads(1)
