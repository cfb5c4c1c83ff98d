"""What the latent model's encoders make of a row, its text embedding and its latent tokens: read from the encode step's
files, or made when it is needed. For a reader the same.

Either way it is the row's alone and rounded to bfloat16, of which the last bit may differ.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import cycle
from typing import Any, Protocol

import ray
import torch
from torch import Tensor

from pipelines.core.artifacts import Artifact
from pipelines.core.base_models import load_image_encoder, load_text_encoder
from pipelines.core.workers import ModelWorkers
from pipelines.data.datasets import MOST_PIXELS, decode_pixels

Promise = Callable[[], Sequence[Tensor]]
"""Gives a tensor a row, bfloat16 and not on a device, waiting for them if need be"""


class Source(Protocol):
    """Where the embeddings (T_i, E) of captions or the latent tokens (N, d) of pictures come from."""

    column: str
    """What it needs of each row"""

    def ask(self, values: Sequence[Any]) -> Promise:
        """Begin to fetch those of some rows, given that column's values. Pictures are of one size."""


class Stored:
    """They stand in the files."""

    def ask(self, values: Sequence[Tensor]) -> Promise:
        return lambda: values


class StoredText(Stored):
    column = "text"


class StoredLatents(Stored):
    column = "latents"


class Encoded(ABC):
    """They are made here and now."""

    @abstractmethod
    def encode(self, values: Sequence[Any]) -> list[Tensor]: ...

    def ask(self, values: Sequence[Any]) -> Promise:
        return lambda: self.encode(values)


class EncodedText(Encoded):
    column = "caption"

    def __init__(self, base: str, device: str, max_tokens: int, padding: str = "none"):
        self.encoder = load_text_encoder(base, device, max_tokens, padding)

    def encode(self, values: Sequence[str]) -> list[Tensor]:
        return [embedding.to("cpu", torch.bfloat16) for embedding in self.encoder.encode(values)]


class EncodedLatents(Encoded):
    column = "image"

    def __init__(self, base: str, device: str):
        self.encoder = load_image_encoder(base, device)

    def encode(self, values: Sequence[bytes]) -> list[Tensor]:
        """As many pictures at once as the encode step takes."""
        pixels = decode_pixels(list(values))
        together = max(1, MOST_PIXELS // pixels[0, 0].numel())
        parts = [self.encoder.encode(part.float() / 127.5 - 1) for part in pixels.split(together)]
        return list(torch.cat(parts).to("cpu", torch.bfloat16))


class Remote:
    """They are made by actors, which share what is asked for at once; what is asked for early is there in time."""

    def __init__(self, actors: list[Any], first: int):
        """`first`: readers in step with each other should not all begin with the same actor."""
        self.count, start = len(actors), first % len(actors)
        self.actors = cycle(actors[start:] + actors[:start])

    def ask(self, values: Sequence[Any]) -> Promise:
        each = -(-len(values) // self.count)
        parts = [next(self.actors).encode.remote(values[i : i + each]) for i in range(0, len(values), each)]
        return lambda: [tensor for part in ray.get(parts) for tensor in part]


class RemoteText(Remote):
    column = "caption"


class RemoteLatents(Remote):
    column = "image"


def is_stored(encoded: Artifact) -> bool:
    """Whether an encode artifact holds embeddings, or leaves them to be made of its captions."""
    return encoded.manifest["config"]["text"] == "stored"


def are_latents_stored(encoded: Artifact) -> bool:
    """Whether an encode artifact holds latent tokens, or leaves them to be made of the curated pictures."""
    return encoded.manifest["config"].get("latents", "stored") == "stored"  # once there was no choice


def text_here(encoded: Artifact, base: str, device: str) -> Source:
    """The embeddings of an encode artifact's captions, on `device` where they are still to be made."""
    return StoredText() if is_stored(encoded) else EncodedText(base, device, *text_length(encoded))


def text_actors(
    encoded: Artifact, base: str, pool: ModelWorkers, restarts: int
) -> AbstractContextManager[list[Any]]:
    """Actors for RemoteText; none where the embeddings are stored."""
    arguments = (base, pool.device, *text_length(encoded))
    return nullcontext([]) if is_stored(encoded) else _actors(EncodedText, arguments, pool, restarts)


def latent_actors(
    encoded: Artifact, base: str, pool: ModelWorkers, restarts: int
) -> AbstractContextManager[list[Any]]:
    """Actors for RemoteLatents; none where the latents are stored."""
    arguments = (base, pool.device)
    return nullcontext([]) if are_latents_stored(encoded) else _actors(EncodedLatents, arguments, pool, restarts)


@contextmanager
def _actors(cls: type[Encoded], arguments: tuple, pool: ModelWorkers, restarts: int) -> Iterator[list[Any]]:
    """One that is lost is started again, and what it was asked is asked again, `restarts` times."""
    options = {"num_cpus": 1, "num_gpus": pool.gpus, "max_restarts": restarts, "max_task_retries": restarts}
    actor = ray.remote(cls).options(**options)
    actors: list[Any] = [actor.remote(*arguments) for _ in range(pool.workers)]
    try:
        yield actors
    finally:
        for handle in actors:
            ray.kill(handle)


def text_padding(encoded: Artifact) -> str:
    """Return how an encode artifact's text is padded: `none` or `max_length`."""
    return encoded.manifest["config"].get("text_padding", "none")  # artifacts older than the setting


def text_length(encoded: Artifact) -> tuple[int, str]:
    """Return (the most tokens, how texts are padded): what decides how long an embedding is."""
    return encoded.manifest["config"]["max_text_tokens"], text_padding(encoded)
