"""Write checkpoints in the background. A store that is slow or unavailable delays no optimizer step."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from pipelines.train.checkpoint import Tensors

LOGGER = logging.getLogger(__name__)
PATIENCE = 1.0
"""Seconds that a pending write may delay the next checkpoint"""


class Uploader:
    """Writes one checkpoint at a time in a thread, and keeps the newest one waiting.

    A failed write is dropped with a warning: training continues, and the next checkpoint contains everything.
    """

    def __init__(self, write: Callable[[Tensors, dict[str, Any]], None], good: int | None = None):
        """Start from `good`, the step of the checkpoint that the run resumed from."""
        self.good = good
        """Step of the last complete checkpoint"""
        self.failed = 0
        self.reason = ""
        """Why the last write failed; empty if it succeeded"""
        self._write = write
        self._changed = threading.Condition()
        self._next: tuple[Tensors, dict[str, Any]] | None = None
        self._writing: int | None = None
        self._since = 0.0
        self._thread: threading.Thread | None = None

    def submit(self, tensors: Tensors, state: dict[str, Any]) -> None:
        """Schedule a checkpoint. `tensors` must not change any more.

        Waits briefly for a pending write, so that at most one copy is in memory. If the store does not keep up, a
        waiting checkpoint is replaced.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
            self._thread.start()
        with self._changed:
            self._changed.wait_for(self._is_idle, max(0.0, self._since + PATIENCE - time.monotonic()))
            if self._is_idle():
                self._since = time.monotonic()
            elif self._next:
                skipped, writing = self._next[1]["step"], self._writing
                LOGGER.warning("no checkpoint of step %d: that of step %s is still being written", skipped, writing)
            self._next = tensors, state
            self._changed.notify_all()

    def wait(self, seconds: float = threading.TIMEOUT_MAX, meanwhile: Callable[[], Any] = lambda: None) -> bool:
        """Wait until nothing is being written.

        Args:
            seconds: limit of the wait.
            meanwhile: called every second; False ends the wait.

        Returns:
            Whether the last checkpoint was written.
        """
        deadline = time.monotonic() + seconds
        with self._changed:
            while not self._is_idle() and (left := deadline - time.monotonic()) > 0 and meanwhile() is not False:
                self._changed.wait_for(self._is_idle, min(left, 1.0))
            if not self._is_idle():
                waited = seconds - max(0.0, deadline - time.monotonic())
                self.reason = f"the store has not taken it after {waited:.0f} s"
                return False
            return not self.reason

    def _is_idle(self) -> bool:
        return self._writing is None and self._next is None

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._next is not None)
                assert self._next
                tensors, state = self._next
                self._next, self._writing, self._since = None, state["step"], time.monotonic()
            reason = ""
            try:
                self._write(tensors, state)
            except Exception as error:  # of any kind: training continues
                reason = " ".join(f"{type(error).__name__}: {error}".split())
                LOGGER.warning("the checkpoint of step %d failed, training continues: %s", state["step"], reason)
            del tensors
            with self._changed:
                self.reason = reason
                self.failed += bool(reason)
                if not reason:
                    self.good = state["step"]
                self._writing = None
                self._changed.notify_all()
