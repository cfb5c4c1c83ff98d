"""Text embeddings and latent tokens of rows, read from the encode step's files or encoded on the fly.

Both sources have the same interface. A row's result does not depend on the other rows and is rounded to bfloat16; its
last bit may differ between the sources.
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
from pipelines.data.datasets import MAX_BATCH_PIXELS, decode_pixels

PendingTensors = Callable[[], Sequence[Tensor]]
"""Waits for the result of a request and returns one bfloat16 CPU tensor per row"""


class Source(Protocol):
    """Source of text embeddings (T_i, E) of captions, or of latent tokens (N, d) of images."""

    column: str
    """The column that it reads"""

    def request(self, values: Sequence[Any]) -> PendingTensors:
        """Request the tensors of some rows, given their values of the column. Images must have one size."""


class LatentSource(Source, Protocol):
    """Source of latent tokens, also of reference images, of which a row of `reference_column` has several."""

    reference_column: str


class Stored:
    """Source that returns tensors stored in the files."""

    def request(self, values: Sequence[Tensor]) -> PendingTensors:
        """Return the stored tensors."""
        return lambda: values


class StoredText(Stored):
    """Stored text embeddings."""

    column = "text"


class StoredLatents(Stored):
    """Stored latent tokens."""

    column = "latents"
    reference_column = "reference_latents"


class Encoded(ABC):
    """Source that encodes in this process, when the result is needed."""

    @abstractmethod
    def encode(self, values: Sequence[Any]) -> list[Tensor]:
        """Encode some rows, given their values of the column."""

    def request(self, values: Sequence[Any]) -> PendingTensors:
        """Encode the rows once the result is needed."""
        return lambda: self.encode(values)


class EncodedText(Encoded):
    """Text embeddings encoded in this process."""

    column = "caption"

    def __init__(self, base: str, device: str, max_tokens: int, padding: str = "none"):
        self.encoder = load_text_encoder(base, device, max_tokens, padding)

    def encode(self, values: Sequence[str]) -> list[Tensor]:
        """Encode captions to embeddings (T_i, E)."""
        return [embedding.to("cpu", torch.bfloat16) for embedding in self.encoder.encode(values)]


class EncodedLatents(Encoded):
    """Latent tokens encoded in this process."""

    column = "image"
    reference_column = "references"

    def __init__(self, base: str, device: str):
        self.encoder = load_image_encoder(base, device)

    def encode(self, values: Sequence[bytes]) -> list[Tensor]:
        """Encode images of one size to latent tokens (N, d), in batches as large as the encode step's."""
        pixels = decode_pixels(list(values))
        batch_size = max(1, MAX_BATCH_PIXELS // pixels[0, 0].numel())
        parts = [self.encoder.encode(part.float() / 127.5 - 1) for part in pixels.split(batch_size)]
        return list(torch.cat(parts).to("cpu", torch.bfloat16))


class Remote:
    """Source that splits each request over actors; requests made ahead of use hide the encoding time.

    Args:
        actors: The actors of one of the functions below.
        first: Number of the actor to start with, which should differ between concurrent data loaders.
    """

    def __init__(self, actors: list[Any], first: int):
        self.count, start = len(actors), first % len(actors)
        self.actors = cycle(actors[start:] + actors[:start])

    def request(self, values: Sequence[Any]) -> PendingTensors:
        """Send the rows to the actors in equal parts."""
        each = -(-len(values) // self.count)
        parts = [next(self.actors).encode.remote(values[i : i + each]) for i in range(0, len(values), each)]
        return lambda: [tensor for part in ray.get(parts) for tensor in part]


class RemoteText(Remote):
    """Text embeddings encoded by actors."""

    column = "caption"


class RemoteLatents(Remote):
    """Latent tokens encoded by actors."""

    column = "image"
    reference_column = "references"


def is_stored(encoded: Artifact) -> bool:
    """Return whether an encode artifact holds text embeddings, rather than captions only."""
    return encoded.manifest["config"]["text"] == "stored"


def are_latents_stored(encoded: Artifact) -> bool:
    """Return whether an encode artifact holds latent tokens."""
    return encoded.manifest["config"].get("latents", "stored") == "stored"  # artifacts older than the setting


def text_actors(encoded: Artifact, base: str, pool: ModelWorkers, restarts: int) -> AbstractContextManager[list[Any]]:
    """Start the actors for `RemoteText` in a context; none if the embeddings are stored."""
    arguments = (base, pool.device, *text_length(encoded))
    return nullcontext([]) if is_stored(encoded) else _actors(EncodedText, arguments, pool, restarts)


def latent_actors(encoded: Artifact, base: str, pool: ModelWorkers, restarts: int) -> AbstractContextManager[list[Any]]:
    """Start the actors for `RemoteLatents` in a context; none if the latents are stored."""
    arguments = (base, pool.device)
    return nullcontext([]) if are_latents_stored(encoded) else _actors(EncodedLatents, arguments, pool, restarts)


@contextmanager
def _actors(cls: type[Encoded], arguments: tuple, pool: ModelWorkers, restarts: int) -> Iterator[list[Any]]:
    """Start a pool of actors; a lost actor is restarted, and its requests are retried, `restarts` times."""
    options = {"num_cpus": 1, "num_gpus": pool.gpus, "max_restarts": restarts, "max_task_retries": restarts}
    actor = ray.remote(cls).options(**options)
    actors: list[Any] = [actor.remote(*arguments) for _ in range(pool.workers)]
    try:
        yield actors
    finally:
        for handle in actors:
            ray.kill(handle)


def text_padding(encoded: Artifact) -> str:
    """Return how an encode artifact's captions are padded: `none` or `max_length`."""
    return encoded.manifest["config"].get("text_padding", "none")  # artifacts older than the setting


def text_length(encoded: Artifact) -> tuple[int, str]:
    """Return (maximum number of tokens, padding), which determine the length of a text embedding."""
    return encoded.manifest["config"]["max_text_tokens"], text_padding(encoded)
