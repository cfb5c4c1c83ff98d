"""Show the progress of long loops: a bar on a terminal, lines at intervals in a file or a job's log.

Every loop of the pipeline reports its progress through this module; ruff forbids tqdm elsewhere.
"""

import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

from tqdm import tqdm

from pipelines.core.threads import with_label

T = TypeVar("T")

SECONDS_PER_LINE = 30.0
"""Minimum time between two progress lines of a thread"""


class Bar(Protocol):
    """Progress bar of one loop."""

    def update(self, n: int = 1) -> object:
        """Count `n` more units as done."""
        ...

    def close(self) -> object:
        """End the bar."""
        ...


class LogLines:
    """Progress bar for logs: prints at most one line per SECONDS_PER_LINE and thread, over all loops."""

    _last = threading.local()
    """`line`: time of the thread's last line"""

    def __init__(self, label: str, total: int, unit: str):
        self.label, self.total, self.unit = label, total, unit
        self.done = 0
        self._first: tuple[float, int] | None = None

    def update(self, n: int = 1) -> None:
        """Count `n` more units as done. Speed is measured from the first call, whose `n` may come from a checkpoint."""
        self.done += n
        now = time.monotonic()
        if self._first is None:
            self._first = now, self.done
        if now - getattr(LogLines._last, "line", float("-inf")) >= SECONDS_PER_LINE:
            LogLines._last.line = now
            line = f"{self.label}: {self.unit} {self.done} of {self.total}{self._speed(now)}"
            print(with_label(line), file=sys.stderr, flush=True)

    def _speed(self, now: float) -> str:
        started, done_before = self._first or (now, self.done)
        if self.done == done_before:
            return ""
        seconds = (now - started) / (self.done - done_before)
        left = tqdm.format_interval(seconds * (self.total - self.done))
        return f", {seconds:.3g} s per {self.unit}, {left} left"

    def close(self) -> None:
        """Do nothing: a log needs no line for the end of a loop."""


def on_terminal() -> bool:
    """Return whether this process's stderr is a terminal."""
    return sys.stderr.isatty()


def open_worker_bar(label: str, total: int, unit: str, on_terminal: bool) -> Bar:
    """Open the bar of a loop in a Ray worker.

    Args:
        label: Name of the loop.
        total: Number of units.
        unit: Name of one unit, in the singular.
        on_terminal: Whether the driver's stderr is a terminal; the worker's own is a file.

    Returns:
        A bar that Ray shows on the driver's terminal, or lines that Ray forwards to the driver's log.
    """
    if not on_terminal:
        return LogLines(label, total, unit)
    from ray.experimental import tqdm_ray

    return tqdm_ray.tqdm(desc=label, total=total, unit=unit)


def track(items: Iterable[T], total: int, label: str, unit: str) -> Iterator[T]:
    """Yield `items` and show how many of `total` have been consumed."""
    bar: Bar = tqdm(desc=with_label(label), total=total, unit=unit) if on_terminal() else LogLines(label, total, unit)
    try:
        for item in items:
            yield item
            bar.update()
    finally:
        bar.close()
