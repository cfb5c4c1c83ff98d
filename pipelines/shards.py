"""One item in, one result out, on Ray Data: the shape of every step over a data set.

Each item's summary is written last; a rerun does only the items without one. Memory does not grow with their number.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

import ray
from pydantic import Field
from ray.data import ActorPoolStrategy
from tqdm import tqdm

from pipelines import storage
from pipelines.config import Settings

Worker = Callable[[str], dict[str, Any]]


class Workers(Settings):
    """The actors of a step, one CPU each."""

    workers: int = Field(2, ge=1)

    @property
    def gpus(self) -> float:
        return 0


class ModelWorkers(Workers):
    """Actors that each hold a model."""

    gpus_per_worker: float = Field(0, ge=0)

    @property
    def gpus(self) -> float:
        return self.gpus_per_worker

    @property
    def device(self) -> str:
        return "cuda" if self.gpus else "cpu"


def shard_name(uri: str) -> str:
    """A file's name without its endings."""
    return PurePosixPath(uri).name.split(".")[0]


def item_name(uri: str) -> str:
    """FOLDER-NAME of a file: crawls number the shards of every part from 0."""
    return f"{PurePosixPath(uri).parent.name}-{shard_name(uri)}"


def by_name(files: list[str]) -> dict[str, str]:
    """Files as items, by `item_name`. ValueError where two share a name: their results would overwrite."""
    items = {item_name(f): f for f in files}
    if len(items) != len(files):
        raise ValueError("two shards have one name; results would overwrite each other")
    return items


class _Task:
    """Makes the worker once an actor, and keeps each item's summary."""

    def __init__(self, make_worker: Callable[[], Worker], summaries: str):
        self.worker = make_worker()
        self.summaries = summaries

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        summary = {"item": row["item"], **self.worker(row["item"])}
        storage.write_bytes(_summary_file(self.summaries, row["name"]), json.dumps(summary).encode())
        return {"name": row["name"]}


def map_items(
    items: Mapping[str, str],
    make_worker: Callable[[], Worker],
    folder: str,
    resources: Workers,
) -> Iterator[dict[str, Any]]:
    """Apply a worker to every item that has no summary in `folder/.done` yet; yields all summaries, in order.

    `items` is {name: what the worker is called with}. `make_worker()` is called once an actor: that is where models
    are loaded. A worker writes its own outputs atomically, named after the item, so that doing an item again (a lost
    task, a killed run) changes nothing.
    """
    summaries = storage.join(folder, ".done")
    done = {shard_name(uri) for uri in storage.list_files(summaries, ".json")}
    todo = [{"name": name, "item": item} for name, item in items.items() if name not in done]
    if todo:
        data = ray.data.from_items(todo, override_num_blocks=len(todo)).map(
            _Task,  # type: ignore[arg-type]  # a class becomes an actor; Ray's signature knows functions only
            fn_constructor_args=(make_worker, summaries),
            # from one actor on, so that a small cluster still works
            compute=ActorPoolStrategy(min_size=1, max_size=min(resources.workers, len(todo))),
            num_cpus=1,
            num_gpus=resources.gpus or None,
        )
        for _ in tqdm(data.iter_rows(), total=len(todo), desc=PurePosixPath(folder).parent.name, unit="shard"):
            pass
    for name in items:
        yield json.loads(storage.read_bytes(_summary_file(summaries, name)))


def _summary_file(summaries: str, name: str) -> str:
    return storage.join(summaries, f"{name}.json")
