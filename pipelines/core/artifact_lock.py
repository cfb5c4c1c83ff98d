"""One job at a time makes an artifact; another one with the same settings waits, and then finds it made.

Without it two identical jobs do the work twice, and two trainings take turns in fencing each other off. In a folder the
lock is the kernel's, and ends with its process. On S3 it is a lease: a small object, renewed while its job lives, that
no longer counts once it is LEASE_SECONDS old by the store's clock.
"""

import fcntl
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from botocore.exceptions import BotoCoreError, ClientError

from pipelines.core import s3, storage
from pipelines.core.s3 import StorageError

LOGGER = logging.getLogger(__name__)
LOCK = ".lock"
LEASE_SECONDS = 60.0
RENEW_SECONDS = 15.0
_POLL_SECONDS = 2.0
_RELEASE_SECONDS = 10.0
_CONDITION_FAILED = ("PreconditionFailed", "ConditionalRequestConflict")


@contextmanager
def only_job(folder: str) -> Iterator[None]:
    """Hold the lock of an artifact's folder, local or on S3, waiting for another job, which a warning names.

    Raises:
        StorageError: the lock cannot be written.
    """
    with _lock_file(folder) if storage.is_local(folder) else _lease(folder):
        yield


def _note() -> bytes:
    """Tells those who wait who holds the lock; never the same twice, so that each write has an ETag of its own."""
    return json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "id": uuid4().hex}).encode()


def _say_waiting(folder: str, note: bytes) -> None:
    try:
        holder = json.loads(note)
        who = f"process {holder['pid']} on {holder['host']}"
    except ValueError:  # it has not written the note yet
        who = "another job"
    LOGGER.warning("%s makes %s already: waiting until it ends", who, folder)


@contextmanager
def _lock_file(folder: str) -> Iterator[None]:
    path = Path(storage.absolute(folder)) / LOCK
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+b")
    except OSError as error:
        raise StorageError(error.errno, f"cannot write: {error.strerror}", str(path)) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            _say_waiting(folder, file.read())
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:  # some network file systems have none
            LOGGER.warning("%s: no locks here (%s); do not run the same job twice at once", path, error.strerror)
        file.truncate(0)
        file.write(_note())
        file.flush()
        yield


@contextmanager
def _lease(folder: str) -> Iterator[None]:
    lease, told = _Lease(storage.join(folder, LOCK)), False
    while not lease.take():
        if not told:
            _say_waiting(folder, lease.seen)
        told = True
        time.sleep(_POLL_SECONDS)
    renewer = threading.Thread(target=lease.keep, name="artifact lease", daemon=True)
    renewer.start()
    try:
        yield
    finally:
        lease.release()


class _Lease:
    """The object at `uri`. `etag` is that of our last write, `seen` another job's note."""

    def __init__(self, uri: str):
        self.uri, self.etag, self.seen = uri, "", b""
        self._released, self._lost = threading.Event(), False

    def take(self) -> bool:
        """Whether it is ours now: there was none, or one that no living job renews."""
        if self._write(IfNoneMatch="*"):
            return True
        found = self._read()
        if found is None:  # released in between
            return False
        self.seen, etag, age = found
        return age > LEASE_SECONDS and self._write(IfMatch=etag)

    def keep(self) -> None:
        """Renew it until it is released."""
        while not self._released.wait(RENEW_SECONDS):
            try:
                if not self._write(IfMatch=self.etag) and not self._released.is_set():
                    self._lost = True
                    LOGGER.warning("%s: another job took this one for dead, and makes the same artifact", self.uri)
                    return
            except StorageError as error:  # the job's own work says so where the store stays away
                LOGGER.warning("%s: cannot be renewed: %s", self.uri, error)

    def release(self) -> None:
        """A renewal under way does not bring it back: what it expects to replace is gone. A store that hangs does not
        hold up the job's end."""
        self._released.set()
        if self._lost:
            return
        deleting = threading.Thread(target=self._delete, name="artifact lease", daemon=True)
        deleting.start()
        deleting.join(_RELEASE_SECONDS)

    def _delete(self) -> None:
        try:
            s3.client().delete_object(**s3.place(self.uri))  # once: it expires anyway
        except (BotoCoreError, ClientError) as error:
            LOGGER.warning("%s: cannot be deleted, and expires in %d s: %s", self.uri, LEASE_SECONDS, error)

    def _write(self, **condition: str) -> bool:
        """Whether the condition held."""
        note = _note()
        put = {**s3.place(self.uri), "Body": note}
        try:
            answer = s3.retried(self.uri, s3.client().put_object, **put, **condition)
        except FileNotFoundError:  # nothing there to match
            return False
        except StorageError as error:
            if s3.code_of(error) in _CONDITION_FAILED:
                return self._was_written(note)
            if s3.code_of(error) != "NotImplemented":
                raise
            LOGGER.warning("%s: this store has no conditional writes; do not run the same job twice at once", self.uri)
            answer = s3.retried(self.uri, s3.client().put_object, **put)
        self.etag = answer["ETag"]
        return True

    def _was_written(self, note: bytes) -> bool:
        """Whether an attempt did come through whose answer was lost: the next one then fails for its own object."""
        found = self._read()
        if found is None or found[0] != note:
            return False
        self.etag = found[1]
        return True

    def _read(self) -> tuple[bytes, str, float] | None:
        """(note, ETag, age in seconds); None where there is none."""

        def get() -> tuple[bytes, dict[str, Any]]:
            answer = s3.client().get_object(**s3.place(self.uri))
            return answer["Body"].read(), answer

        try:
            note, answer = s3.retried(self.uri, get)
        except FileNotFoundError:
            return None
        now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
        return note, answer["ETag"], (now - answer["LastModified"]).total_seconds()
