"""Embeddings of captions, read from the encode step's files or made when they are needed: for a reader the same.

Either way an embedding is its caption's alone and rounded to bfloat16, of which the last bit may differ.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import cycle
from typing import Any, Protocol

import ray
import torch
from torch import Tensor

from pipelines.artifacts import Artifact
from pipelines.models import load_text_encoder
from pipelines.shards import ModelWorkers

Promise = Callable[[], Tensor]
"""Gives an embedding (T, E) bfloat16, waiting for it if need be"""


class TextSource(Protocol):
    """Where the embeddings of rows come from."""

    column: str
    """What it needs of a row of the encode step's text files"""

    def ask(self, row: Mapping[str, Any]) -> Promise:
        """Begin to fetch a row's embedding."""


class StoredText:
    """The embeddings in the files."""

    column = "text"

    def ask(self, row: Mapping[str, Any]) -> Promise:
        return lambda: row["text"]


class EncodedText:
    """Embeddings made here and now."""

    column = "caption"

    def __init__(self, base: str, device: str, max_tokens: int):
        self.encoder = load_text_encoder(base, device, max_tokens)

    def embed(self, caption: str) -> Tensor:
        return self.encoder.encode([caption])[0].to("cpu", torch.bfloat16)

    def ask(self, row: Mapping[str, Any]) -> Promise:
        return lambda: self.embed(row["caption"])


class RemoteText:
    """Embeddings made by actors, in turn; those that are asked for early are there in time."""

    column = "caption"

    def __init__(self, actors: list[Any], first: int):
        """`first`: readers in step with each other should not all begin with the same actor."""
        start = first % len(actors)
        self.actors = cycle(actors[start:] + actors[:start])

    def ask(self, row: Mapping[str, Any]) -> Promise:
        embedding = next(self.actors).embed.remote(row["caption"])
        return lambda: ray.get(embedding)


def is_stored(encoded: Artifact) -> bool:
    """Whether an encode artifact holds embeddings, or leaves them to be made of its captions."""
    return encoded.manifest["config"]["text"] == "stored"


def text_here(encoded: Artifact, base: str, device: str) -> TextSource:
    """The embeddings of an encode artifact's captions, on `device` where they are still to be made."""
    return StoredText() if is_stored(encoded) else EncodedText(base, device, _max_tokens(encoded))


@contextmanager
def text_actors(encoded: Artifact, base: str, pool: ModelWorkers, restarts: int) -> Iterator[list[Any]]:
    """Actors for RemoteText; none where the embeddings are stored. One that is lost is started again, and what it was
    asked is asked again, `restarts` times."""
    if is_stored(encoded):
        yield []
        return
    options = {"num_cpus": 1, "num_gpus": pool.gpus, "max_restarts": restarts, "max_task_retries": restarts}
    actor = ray.remote(EncodedText).options(**options)
    actors: list[Any] = [actor.remote(base, pool.device, _max_tokens(encoded)) for _ in range(pool.workers)]
    try:
        yield actors
    finally:
        for handle in actors:
            ray.kill(handle)


def _max_tokens(encoded: Artifact) -> int:
    return encoded.manifest["config"]["max_text_tokens"]
