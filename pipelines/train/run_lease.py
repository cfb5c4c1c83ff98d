"""Who may write a run, and whether it was asked to stop: one small file beside its checkpoints.

A run is started again under the same name while an older try at it may still be alive somewhere (a lost node, a second
job submitted by mistake, a retry by the cluster). The newest try claims the file; an older one that finds it claimed
stops, and writes nothing more.
"""

import json
import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from types import FrameType
from uuid import uuid4

from pipelines.core import storage

LOGGER = logging.getLogger(__name__)
_LOOK_EVERY = 1.0  # seconds


class Order(IntEnum):
    """What workers are to do after a step; of several, the greatest."""

    GO_ON = 0
    ASK = 1
    """Ask Ray whether a node is about to be taken away"""
    STOP = 2
    """Write a checkpoint and end: the job was asked to"""
    LEAVE = 3
    """Write a checkpoint and fail: this worker's process was asked to end, Ray starts another"""
    FENCED = 4
    """End and write nothing: a newer attempt runs"""


@dataclass(frozen=True)
class Attempt:
    """One try at the run whose artifact lies in `folder`."""

    folder: str
    name: str

    @classmethod
    def claim(cls, folder: str) -> "Attempt":
        """Become the newest."""
        attempt = cls(folder, uuid4().hex[:8])
        attempt._write(stop=False)
        return attempt

    def ask_to_stop(self) -> None:
        """Unless a newer attempt took over, whose file this then is."""
        if self.order() != Order.FENCED:
            self._write(stop=True)

    def order(self) -> Order:
        """GO_ON, STOP or FENCED."""
        newest = json.loads(storage.read_bytes(self._file))
        if newest["attempt"] != self.name:
            return Order.FENCED
        return Order.STOP if newest["stop"] else Order.GO_ON

    def _write(self, stop: bool) -> None:
        storage.write_bytes(self._file, json.dumps({"attempt": self.name, "stop": stop}).encode())

    @property
    def _file(self) -> str:
        return storage.join(self.folder, ".train", "attempt.json")


class Lookout:
    """Reads the file every second in a thread of its own; a store that does not answer changes nothing."""

    def __init__(self, attempt: Attempt):
        self.attempt, self.order = attempt, Order.GO_ON
        self._ended = threading.Event()
        threading.Thread(target=self._look, name="lookout", daemon=True).start()

    def _look(self) -> None:
        while not self._ended.wait(_LOOK_EVERY):
            try:
                self.order = self.attempt.order()
            except (OSError, storage.StorageError, ValueError) as error:
                LOGGER.debug("attempt.json cannot be read now: %s", error)

    def close(self) -> None:
        self._ended.set()


@contextmanager
def stopping_on_sigterm(attempt: Attempt) -> Iterator[None]:
    """In the driver's main thread: SIGTERM (`ray job stop`, Kubernetes) asks for a checkpoint and an end."""

    def ask(number: int, frame: FrameType | None) -> None:
        LOGGER.warning("asked to stop: writing a checkpoint first")
        attempt.ask_to_stop()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


TERMINATED = threading.Event()
"""Set in a worker whose process was sent SIGTERM"""


def note_sigterm() -> None:
    """In a worker's main thread: SIGTERM is noted for the training's thread, instead of ending the process at once."""
    signal.signal(signal.SIGTERM, lambda number, frame: TERMINATED.set())
