"""One item in, one result out, on Ray Data: the shape of every step over a data set.

Each item's summary is written last; a rerun does only the items without one. An item that fails does not stop the
others. Memory does not grow with their number.
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
from pipelines.core.workers import Workers

LOGGER = logging.getLogger(__name__)
MAX_FAILED = 10
"""More failed items than these are a bug, not bad luck: a step stops early"""
_SHOWN = 3
_READERS = 8

Worker = Callable[[str], dict[str, Any]]


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
    """Makes the worker once an actor, and keeps each item's summary where there is a folder for them."""

    def __init__(self, make_worker: Callable[[], Worker], summaries: str):
        self.worker = make_worker()
        self.summaries = summaries

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        name, item = row["name"], row["item"]
        try:
            summary = {"item": item, **self.worker(item)}
            if self.summaries:
                storage.write_bytes(_summary_file(self.summaries, name), json.dumps(summary).encode())
        except Exception as error:  # of any kind: the other items go on
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
    """Apply a worker to every item that has no summary yet; yields all summaries, in order.

    `items` is {name: what the worker is called with}. `make_worker()` is called once an actor: that is where models
    are loaded. A worker writes its own outputs atomically, named after the item, so that doing an item again (a lost
    task, a killed run) changes nothing. Summaries lie in `folder/.done`, or in a folder of it for each stage of a step
    that calls this more than once. Raises ItemsFailed after the last item, or once more than MAX_FAILED have failed.
    """
    summaries = storage.join(folder, ".done", *filter(None, [stage]))
    done = _names_done(summaries)
    todo = {name: item for name, item in items.items() if name not in done}
    label = " ".join(filter(None, [PurePosixPath(folder).parent.name, stage]))
    do_items(todo, make_worker, resources, label, summaries)
    yield from _read_summaries(_summary_file(summaries, name) for name in items)


def do_items(
    todo: Mapping[str, str],
    make_worker: Callable[[], Worker],
    resources: Workers,
    label: str,
    summaries: str = "",
    unit: str = "shard",
) -> None:
    """Do all items, {name: what the worker is called with}, whether done before or not: for outputs that tell by
    themselves what is missing. `make_worker` and the worker are those of `map_items`. Raises ItemsFailed."""
    if not todo:
        return
    missing = dict.fromkeys(todo, "its worker died each time (out of memory?)")
    failed: dict[str, str] = {}
    rows: Any = iter(_start(todo, make_worker, summaries, resources).iter_rows())
    try:
        with closing(rows):  # Ray ends the actors then, and else only when nothing, no traceback either, holds the rows
            for row in track(rows, len(todo), label, unit):
                del missing[row["name"]]
                if row["error"]:
                    failed[row["name"]] = row["error"]
                if len(failed) > MAX_FAILED:
                    raise ItemsFailed(f"{label}: stopped early, for {_describe(failed, len(todo))}")
    except RayError as error:  # more workers died than MAX_FAILED, or one could not even start
        raise ItemsFailed(f"{label}: workers died: {_one_line(str(error).splitlines()[-1])}") from error
    if failed := failed | missing:
        raise ItemsFailed(f"{label}: {_describe(failed, len(todo))}")


def _start(
    todo: Mapping[str, str], make_worker: Callable[[], Worker], summaries: str, resources: Workers
) -> ray.data.Dataset:
    """Rows {name, error} of all items as they are done; none of those whose worker died with each attempt."""
    items = [{"name": name, "item": item} for name, item in todo.items()]
    with warnings.catch_warnings():
        # Ray will drop `max_task_retries` and has no successor yet: without it, what kills workers is tried for ever
        warnings.simplefilter("ignore", RayDeprecationWarning)
        data = ray.data.from_items(items, override_num_blocks=len(items)).map(
            _Task,  # type: ignore[arg-type]  # a class becomes an actor; Ray's signature knows functions only
            fn_constructor_args=(make_worker, summaries),
            # from one actor on, so that a small cluster still works; one item each, so that none dies of another
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
    return f"{len(failed)} of {count} items failed ({shown}{more}); running again does only what is missing"


def _one_line(text: str) -> str:
    return textwrap.shorten(text, 200, placeholder=" ...")


def _names_done(summaries: str) -> set[str]:
    start = len(storage.absolute(summaries)) + 1
    files = (uri[start:] for uri in storage.list_files(summaries, ".json"))
    return {unquote(file.removesuffix(".json")) for file in files if "/" not in file}  # other stages' lie in folders


def _summary_file(summaries: str, name: str) -> str:
    """Names may hold what file names cannot: slashes, and a dot at the beginning, which would hide the file."""
    return storage.join(summaries, quote(name, safe="").replace(".", "%2E") + ".json")


def _read_summaries(uris: Iterator[str]) -> Iterator[dict[str, Any]]:
    """Read some ahead, and yield in order."""
    with ThreadPoolExecutor(_READERS) as pool:
        ahead: deque[Future[bytes]] = deque()
        for uri in uris:
            ahead.append(pool.submit(storage.read_bytes, uri))
            if len(ahead) > _READERS:
                yield json.loads(ahead.popleft().result())
        while ahead:
            yield json.loads(ahead.popleft().result())
