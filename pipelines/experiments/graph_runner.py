"""Run a graph of steps: each when its inputs exist and its resources fit, several at the same time, in threads.

Ray places the work of the steps, and artifacts make them durable; this only decides when a step starts.
"""

import logging
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from functools import partial
from graphlib import TopologicalSorter
from typing import Generic, TypeVar

from pipelines.core.job_process import is_expected
from pipelines.core.threads import add_label, run_in_thread
from pipelines.experiments.graph import Resources, startable
from pipelines.train.stopping import StopRequest, catch_stop_signals

T = TypeVar("T")
LOGGER = logging.getLogger(__name__)
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Task(Generic[T]):
    """A step whose inputs exist: finished before, or to be run."""

    run: Callable[[], T]
    finished: T | None = None


@dataclass
class GraphResult(Generic[T]):
    """How the steps of a graph ended."""

    outcomes: dict[str, T] = field(default_factory=dict)
    failed: dict[str, Exception] = field(default_factory=dict)
    skipped: dict[str, list[str]] = field(default_factory=dict)
    """{step that was not started: the steps that it needs and lacks}"""
    times: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Start and end of each step that ran here, in seconds of Unix time"""


def run_graph(
    needs: Mapping[str, Sequence[str]],
    prepare: Callable[[str, Mapping[str, T]], Task[T]],
    demand: Mapping[str, Resources],
    capacity: Callable[[], Resources],
) -> GraphResult[T]:
    """Run all steps; a failed one stops only those that need it.

    SIGTERM and Ctrl-C start nothing new and end the process, after the trainings that run have written a checkpoint.

    Args:
        needs: {step: the steps that it needs}, in the order in which steps are preferred.
        prepare: Called in this thread with a step and the outcomes so far, once those that it needs have ended.
        demand: Resources that each step declares.
        capacity: Returns the resources of the cluster. Called while a step runs.
    """
    if logging.lastResort:
        logging.lastResort.addFilter(add_label)
    result: GraphResult[T] = GraphResult()
    sorter = TopologicalSorter(needs)
    sorter.prepare()
    order = {name: place for place, name in enumerate(needs)}
    tasks: dict[str, Task[T]] = {}
    running: dict[str, Future[T]] = {}
    with catch_stop_signals() as stop:
        while sorter.is_active() and not stop.is_set():
            for name in sorted(sorter.get_ready(), key=order.__getitem__):
                if task := _prepare(name, needs[name], prepare, result, bool(running or tasks)):
                    tasks[name] = task
                else:
                    sorter.done(name)
            available = capacity() if running and tasks else {}
            for name in startable(sorted(tasks, key=order.__getitem__), running, demand, available):
                running[name] = run_in_thread(partial(_run, name, tasks.pop(name), result), name, name)
            for name in _wait(running, result):
                sorter.done(name)
        if not stop.is_set():
            return result
        _end_trainings(stop, running, result)
        left = [name for name in needs if name not in {**result.outcomes, **result.failed, **result.skipped}]
        result.skipped |= {name: [] for name in left}
    if running or not result.failed:
        signal.raise_signal(stop.signal)  # ends the process, as without a training
    return result


def _prepare(
    name: str,
    needs: Sequence[str],
    prepare: Callable[[str, Mapping[str, T]], Task[T]],
    result: GraphResult[T],
    has_others: bool,
) -> Task[T] | None:
    """Return the task of a step that has to run; None if it ended: it was finished, is skipped, or was refused."""
    if lacking := [need for need in needs if need not in result.outcomes]:
        result.skipped[name] = lacking
        return None
    try:
        task = prepare(name, result.outcomes)
    except Exception as error:  # of any kind: the other branches go on
        _note_failure(name, error, result, has_others)
        return None
    if task.finished is None:
        return task
    result.outcomes[name] = task.finished
    return None


def _run(name: str, task: Task[T], result: GraphResult[T]) -> T:
    started = time.time()
    try:
        return task.run()
    finally:
        result.times[name] = (started, time.time())


def _wait(running: dict[str, "Future[T]"], result: GraphResult[T]) -> list[str]:
    """Wait a moment; move the steps that ended to the result and return them."""
    if not running:
        return []
    wait(running.values(), POLL_SECONDS, FIRST_COMPLETED)
    ended = [name for name, future in running.items() if future.done()]
    for name in ended:
        error = running[name].exception()
        if error is None:
            result.outcomes[name] = running.pop(name).result()
        elif isinstance(error, Exception):
            del running[name]
            _note_failure(name, error, result, bool(running))
        else:
            raise error
    return ended


def _end_trainings(stop: StopRequest, running: dict[str, "Future[T]"], result: GraphResult[T]) -> None:
    """Wait until the trainings that listen to a stop request have ended."""
    ending: set[str] = set()
    while ending := {*ending, *stop.listeners} & running.keys():
        _wait(running, result)


def _note_failure(name: str, error: Exception, result: GraphResult[T], has_others: bool) -> None:
    """Add a failure to the result, and log it now if the end, which names it, may be far."""
    if not is_expected(error):
        LOGGER.error("%s failed", name, exc_info=error)
    elif has_others:
        LOGGER.error("%s failed: %s", name, error)
    result.failed[name] = error
