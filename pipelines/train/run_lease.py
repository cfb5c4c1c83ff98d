"""Who may write a run, by one small file beside its checkpoints, and whether it was asked to stop.

A run is started again under the same name while an older try at it may still be alive somewhere (a lost node, a second
job submitted by mistake, a retry by the cluster). The newest try claims the file; an older one that finds it claimed
stops, and writes nothing more.
"""

import json
import logging
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from uuid import uuid4

from pipelines.core import s3, storage

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
        storage.write_bytes(attempt._file, json.dumps({"attempt": attempt.name}).encode())
        return attempt

    def is_fenced(self) -> bool:
        """Whether a newer attempt took over."""
        return json.loads(storage.read_bytes(self._file))["attempt"] != self.name

    @property
    def _file(self) -> str:
        return storage.join(self.folder, ".train", "attempt.json")


class Lookout:
    """Looks every second whether the run was asked to stop, by Ray's own store, and whether a newer attempt runs, by
    the file. Each has a thread, so that a file that cannot be read hides no stop; what does not answer changes nothing.
    """

    def __init__(self, attempt: Attempt, is_asked_to_stop: Callable[[], bool]):
        self.attempt = attempt
        self._asked, self._fenced, self._ended = threading.Event(), threading.Event(), threading.Event()
        for look, found in ((is_asked_to_stop, self._asked), (self._is_fenced, self._fenced)):
            threading.Thread(target=self._look, args=(look, found), name="lookout", daemon=True).start()

    @property
    def order(self) -> Order:
        """GO_ON, STOP or FENCED."""
        if self._fenced.is_set():
            return Order.FENCED
        return Order.STOP if self._asked.is_set() else Order.GO_ON

    def _is_fenced(self) -> bool:
        with s3.single_attempts():  # the next look is the next attempt
            return self.attempt.is_fenced()

    def _look(self, look: Callable[[], bool], found: threading.Event) -> None:
        while not self._ended.wait(_LOOK_EVERY) and not found.is_set():
            try:
                if look():
                    found.set()
            except Exception as error:  # of any kind: a look that fails is repeated
                LOGGER.debug("not known now: %s", error)

    def close(self) -> None:
        self._ended.set()


TERMINATED = threading.Event()
"""Set in a worker whose process was sent SIGTERM"""


def note_sigterm() -> None:
    """In a worker's main thread: SIGTERM is noted for the training's thread, instead of ending the process at once."""
    signal.signal(signal.SIGTERM, lambda number, frame: TERMINATED.set())
