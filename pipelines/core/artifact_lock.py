"""Lock an artifact's folder, so that one job at a time builds it; an identical job waits and then reuses the artifact.

Without the lock, two identical jobs would do the work twice, and two trainings would fence each other off in turn. In a
local folder the lock is a file lock (flock), which the kernel releases when the process ends. On S3 it is a lease: a
small object that the job renews, and that expires once it is LEASE_SECONDS old by the store's clock.
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
def hold_artifact_lock(folder: str) -> Iterator[None]:
    """Hold the lock of an artifact's folder, local or on S3. If another job holds it, log which one and wait.

    Raises:
        StorageError: The lock cannot be written.
    """
    with _lock_file(folder) if storage.is_local(folder) else _lease(folder):
        yield


def _holder_content() -> bytes:
    """Return the lock's content, which names its holder. It is unique, so that each write has its own ETag."""
    return json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "id": uuid4().hex}).encode()


def _warn_waiting(folder: str, content: bytes) -> None:
    try:
        holder = json.loads(content)
        name = f"process {holder['pid']} on {holder['host']}"
    except ValueError:  # the holder has not written its content yet
        name = "another job"
    LOGGER.warning("%s is already building %s: waiting until it ends", name, folder)


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
            _warn_waiting(folder, file.read())
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:  # some network file systems have no file locks
            LOGGER.warning(
                "%s: file locks are not supported (%s); do not run the same job twice at once", path, error.strerror
            )
        file.truncate(0)
        file.write(_holder_content())
        file.flush()
        yield


@contextmanager
def _lease(folder: str) -> Iterator[None]:
    lease, has_warned = _Lease(storage.join(folder, LOCK)), False
    while not lease.acquire():
        if not has_warned:
            _warn_waiting(folder, lease.other_content)
        has_warned = True
        time.sleep(_POLL_SECONDS)
    renewer = threading.Thread(target=lease.renew_until_released, name="artifact lease", daemon=True)
    renewer.start()
    try:
        yield
    finally:
        lease.release()


class _Lease:
    """The lease object at `uri`.

    Attributes:
        etag: ETag of this job's last write.
        other_content: Content that another job wrote, as last read.
    """

    def __init__(self, uri: str):
        self.uri, self.etag, self.other_content = uri, "", b""
        self._released, self._lost = threading.Event(), False

    def acquire(self) -> bool:
        """Try to take the lease: when it is free, or expired because its job no longer renews it."""
        if self._write(IfNoneMatch="*"):
            return True
        found = self._read()
        if found is None:  # released in the meantime
            return False
        self.other_content, etag, age = found
        return age > LEASE_SECONDS and self._write(IfMatch=etag)

    def renew_until_released(self) -> None:
        """Renew the lease every RENEW_SECONDS until it is released or lost."""
        while not self._released.wait(RENEW_SECONDS):
            try:
                if not self._write(IfMatch=self.etag) and not self._released.is_set():
                    self._lost = True
                    LOGGER.warning(
                        "%s: the lease expired and another job took it; both now build the same artifact", self.uri
                    )
                    return
            except StorageError as error:  # if the outage lasts, the job's own writes fail too
                LOGGER.warning("%s: the lease cannot be renewed: %s", self.uri, error)

    def release(self) -> None:
        """Delete the lease, waiting _RELEASE_SECONDS at most, so that a hanging store does not block the job.

        A renewal in progress cannot recreate the object, because the version that it replaces no longer exists.
        """
        self._released.set()
        if self._lost:
            return
        deleting = threading.Thread(target=self._delete, name="artifact lease", daemon=True)
        deleting.start()
        deleting.join(_RELEASE_SECONDS)

    def _delete(self) -> None:
        try:
            s3.client().delete_object(**s3.bucket_and_key(self.uri))  # without retries: the lease expires anyway
        except (BotoCoreError, ClientError) as error:
            LOGGER.warning("%s: the lease cannot be deleted; it expires in %d s: %s", self.uri, LEASE_SECONDS, error)

    def _write(self, **condition: str) -> bool:
        """Write the lease under a condition; return whether the condition held."""
        content = _holder_content()
        put = {**s3.bucket_and_key(self.uri), "Body": content}
        try:
            answer = s3.retried(self.uri, s3.client().put_object, **put, **condition)
        except FileNotFoundError:  # no object whose ETag could match
            return False
        except StorageError as error:
            if s3.code_of(error) in _CONDITION_FAILED:
                return self._was_written(content)
            if s3.code_of(error) != "NotImplemented":
                raise
            LOGGER.warning(
                "%s: this store does not support conditional writes; do not run the same job twice at once", self.uri
            )
            answer = s3.retried(self.uri, s3.client().put_object, **put)
        self.etag = answer["ETag"]
        return True

    def _was_written(self, content: bytes) -> bool:
        """Return whether an earlier attempt succeeded although its response was lost.

        The retry then fails its condition because of this job's own object.
        """
        found = self._read()
        if found is None or found[0] != content:
            return False
        self.etag = found[1]
        return True

    def _read(self) -> tuple[bytes, str, float] | None:
        """Return (content, ETag, age in seconds) of the lease, or None if it does not exist."""

        def get() -> tuple[bytes, dict[str, Any]]:
            answer = s3.client().get_object(**s3.bucket_and_key(self.uri))
            return answer["Body"].read(), answer

        try:
            content, answer = s3.retried(self.uri, get)
        except FileNotFoundError:
            return None
        now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
        return content, answer["ETag"], (now - answer["LastModified"]).total_seconds()
