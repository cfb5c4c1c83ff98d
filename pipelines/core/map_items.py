"""Map a function over the items of a data set, on Ray Data.

Each item's summary is written last, and a rerun processes only the items without one. A failed item does not stop the
others. Memory use does not depend on the number of items.
"""

import json
import logging
import textwrap
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote, unquote

import ray
from ray.data import ActorPoolStrategy
from ray.exceptions import RayError
from ray.util.annotations import RayDeprecationWarning

from pipelines.core import storage
from pipelines.core.errors import ItemsFailed as ItemsFailed
from pipelines.core.progress import track
from pipelines.core.threads import with_label
from pipelines.core.workers import Workers

LOGGER = logging.getLogger(__name__)
MAX_FAILED = 10
"""A step stops early once more items than this have failed, since that indicates a bug"""
_SHOWN = 3
_READERS = 8

Worker = Callable[[str], dict[str, Any]]
"""Processes an item and returns its summary, which must be JSON"""


def shard_name(uri: str) -> str:
    """Return a file's name without its extensions."""
    return PurePosixPath(uri).name.split(".")[0]


def item_name(uri: str) -> str:
    """Return FOLDER-NAME of a file. The folder is needed because each part of a crawl numbers its shards from 0."""
    return f"{PurePosixPath(uri).parent.name}-{shard_name(uri)}"


def by_name(files: list[str]) -> dict[str, str]:
    """Return files as items, {`item_name`: URI}.

    Raises:
        ValueError: Two files have the same name, so that their results would overwrite each other.
    """
    items = {item_name(f): f for f in files}
    if len(items) != len(files):
        raise ValueError("two shards have the same name, so their results would overwrite each other; rename one")
    return items


class _Task:
    """Ray actor that creates the worker once, and writes each item's summary if there is a folder for summaries."""

    def __init__(self, make_worker: Callable[[], Worker], summaries: str):
        self.worker = make_worker()
        self.summaries = summaries

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        name, item = row["name"], row["item"]
        try:
            summary = {"item": item, **self.worker(item)}
            if self.summaries:
                storage.write_bytes(_summary_file(self.summaries, name), json.dumps(summary).encode())
        except Exception as error:  # any error of an item must not stop the others
            LOGGER.exception("item %s failed", name)
            return {"name": name, "error": f"{type(error).__name__}: {error}"}
        return {"name": name, "error": ""}


def map_items(
    items: Mapping[str, str],
    make_worker: Callable[[], Worker],
    folder: str,
    resources: Workers,
    *,
    stage: str = "",
) -> Iterator[dict[str, Any]]:
    """Apply a worker to every item that has no summary yet; yield the summaries of all items, in order.

    A worker writes its outputs atomically and names them after the item, so that processing an item again (after a lost
    task or a killed run) is idempotent.

    Args:
        items: {name: argument of the worker}.
        make_worker: Called once per actor; loads models.
        folder: Folder of the artifact. Summaries are in its subfolder `.done`.
        resources: The actors.
        stage: Subfolder of `.done`, for steps that call this more than once.

    Raises:
        ItemsFailed: After the last item, if any failed; earlier once more than MAX_FAILED have.
    """
    summaries = storage.join(folder, ".done", *filter(None, [stage]))
    done = _list_finished(summaries)
    todo = {name: item for name, item in items.items() if name not in done}
    label = " ".join(filter(None, [PurePosixPath(folder).parent.name, stage]))
    process_items(todo, make_worker, resources, label, summaries)
    yield from _read_summaries(_summary_file(summaries, name) for name in items)


def process_items(
    todo: Mapping[str, str],
    make_worker: Callable[[], Worker],
    resources: Workers,
    label: str,
    summaries: str = "",
    unit: str = "shard",
) -> None:
    """Process the given items, finished before or not; for callers that determine the missing ones themselves.

    Args:
        todo: {name: argument of the worker}.
        make_worker: See `map_items`.
        resources: The actors.
        label: Name in progress and error messages.
        summaries: Folder for summaries; empty to write none.
        unit: Name of one item in progress messages.

    Raises:
        ItemsFailed: See `map_items`.
    """
    if not todo:
        return
    missing = dict.fromkeys(todo, "its worker died each time (out of memory?)")
    failed: dict[str, str] = {}
    rows: Any = iter(_start(todo, make_worker, summaries, resources, with_label(label)).iter_rows())
    try:
        with closing(rows):  # ends the actors; else Ray keeps them while anything, even a traceback, refers to the rows
            for row in track(rows, len(todo), label, unit):
                del missing[row["name"]]
                if row["error"]:
                    failed[row["name"]] = row["error"]
                if len(failed) > MAX_FAILED:
                    raise ItemsFailed(f"{label}: stopped early: {_describe(failed, len(todo))}")
    except RayError as error:  # more than MAX_FAILED workers died, or one could not start
        raise ItemsFailed(f"{label}: workers died: {_one_line(str(error).splitlines()[-1])}") from error
    if failed := failed | missing:
        raise ItemsFailed(f"{label}: {_describe(failed, len(todo))}")


def _start(
    todo: Mapping[str, str], make_worker: Callable[[], Worker], summaries: str, resources: Workers, label: str
) -> ray.data.Dataset:
    """Return the dataset of rows {name, error}, one per finished item; items whose worker always dies have no row.

    Ray prefixes the workers' messages with the name of their class, which is the label.
    """
    items = [{"name": name, "item": item} for name, item in todo.items()]
    with warnings.catch_warnings():
        # Ray deprecates `max_task_retries` without a successor; without it, items that kill workers are retried forever
        warnings.simplefilter("ignore", RayDeprecationWarning)
        data = ray.data.from_items(items, override_num_blocks=len(items)).map(
            type(label, (_Task,), {}),  # type: ignore[arg-type]  # a class becomes an actor; Ray's signature has functions
            fn_constructor_args=(make_worker, summaries),
            # starts with one actor, so that a small cluster works; one item per actor, so that a crash affects only it
            compute=ActorPoolStrategy(
                min_size=1, max_size=min(resources.workers, len(items)), max_tasks_in_flight_per_actor=1
            ),
            num_cpus=1,
            num_gpus=resources.gpus or None,
            **resources.options,
            max_task_retries=2,
        )
    data.context.max_errored_blocks = MAX_FAILED
    return data


def _describe(failed: Mapping[str, str], count: int) -> str:
    shown = "; ".join(f"{name}: {_one_line(error)}" for name, error in list(failed.items())[:_SHOWN])
    more = f"; and {len(failed) - _SHOWN} more" if len(failed) > _SHOWN else ""
    return f"{len(failed)} of {count} items failed ({shown}{more}); run again to process only the missing items"


def _one_line(text: str) -> str:
    return textwrap.shorten(text, 200, placeholder=" ...")


def _list_finished(summaries: str) -> set[str]:
    """Return the names of the items with a summary."""
    start = len(storage.absolute(summaries)) + 1
    files = (uri[start:] for uri in storage.list_files(summaries, ".json"))
    return {unquote(file.removesuffix(".json")) for file in files if "/" not in file}  # stages are in subfolders


def _summary_file(summaries: str, name: str) -> str:
    """Return the URI of an item's summary; slashes are quoted, and dots too, since a leading one hides the file."""
    return storage.join(summaries, quote(name, safe="").replace(".", "%2E") + ".json")


def _read_summaries(uris: Iterator[str]) -> Iterator[dict[str, Any]]:
    """Yield the summaries in order, prefetching _READERS of them."""
    with ThreadPoolExecutor(_READERS) as pool:
        ahead: deque[Future[bytes]] = deque()
        for uri in uris:
            ahead.append(pool.submit(storage.read_bytes, uri))
            if len(ahead) > _READERS:
                yield json.loads(ahead.popleft().result())
        while ahead:
            yield json.loads(ahead.popleft().result())
