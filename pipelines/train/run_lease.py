"""Run lease: a small file beside the checkpoints that decides which attempt may write; and stop requests.

A run may be started again under the same name while an older attempt is still alive somewhere (a lost node, a second
job submitted by mistake, a retry by the cluster). The newest attempt claims the file; an older one that finds it
claimed stops, and writes nothing more.
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
_POLL_SECONDS = 1.0  # seconds


class WorkerSignal(IntEnum):
    """Signal to all workers after a step; of several, the greatest wins."""

    CONTINUE = 0
    CHECK_PREEMPTION = 1
    """Check with Ray whether a node is about to be preempted"""
    STOP = 2
    """Write a checkpoint and end: the job was stopped"""
    RESTART = 3
    """Write a checkpoint and fail: this worker's process was terminated, Ray starts another"""
    FENCED = 4
    """End and write nothing: a newer attempt runs"""


@dataclass(frozen=True)
class RunLease:
    """One attempt of the run whose artifact is in `folder`."""

    folder: str
    name: str

    @classmethod
    def claim(cls, folder: str) -> "RunLease":
        """Create an attempt, and make it the newest."""
        lease = cls(folder, uuid4().hex[:8])
        storage.write_bytes(lease._file, json.dumps({"attempt": lease.name}).encode())
        return lease

    def is_fenced(self) -> bool:
        """Return whether a newer attempt has taken over."""
        return json.loads(storage.read_bytes(self._file))["attempt"] != self.name

    @property
    def _file(self) -> str:
        return storage.join(self.folder, ".train", "attempt.json")


class LeaseMonitor:
    """Polls every second for a stop request, in Ray's store, and for a newer attempt, in the lease file.

    Each has a thread, so that a file that cannot be read hides no stop request. Failed polls are ignored.
    """

    def __init__(self, lease: RunLease, is_stop_requested: Callable[[], bool]):
        self.lease = lease
        self._stop_requested, self._fenced, self._ended = threading.Event(), threading.Event(), threading.Event()
        for poll, found in ((is_stop_requested, self._stop_requested), (self._is_fenced, self._fenced)):
            threading.Thread(target=self._poll, args=(poll, found), name="lease-monitor", daemon=True).start()

    @property
    def signal(self) -> WorkerSignal:
        """Return CONTINUE, STOP or FENCED."""
        if self._fenced.is_set():
            return WorkerSignal.FENCED
        return WorkerSignal.STOP if self._stop_requested.is_set() else WorkerSignal.CONTINUE

    def _is_fenced(self) -> bool:
        with s3.single_attempts():  # retried at the next poll
            return self.lease.is_fenced()

    def _poll(self, poll: Callable[[], bool], found: threading.Event) -> None:
        while not self._ended.wait(_POLL_SECONDS) and not found.is_set():
            try:
                if poll():
                    found.set()
            except Exception as error:  # of any kind: a failed poll is repeated
                LOGGER.debug("poll failed: %s", error)

    def close(self) -> None:
        """End the threads."""
        self._ended.set()


TERMINATED = threading.Event()
"""Set in a worker whose process received SIGTERM"""


def note_sigterm() -> None:
    """Replace SIGTERM's handler by one that sets TERMINATED; call it in a worker's main thread."""
    signal.signal(signal.SIGTERM, lambda number, frame: TERMINATED.set())
