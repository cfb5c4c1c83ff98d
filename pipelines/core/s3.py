"""S3 through boto3, for `storage`: what fails is tried again, and no byte is lost, repeated, or left half written.

boto3 rather than pyarrow: pyarrow's output streams complete an object when an exception closes them, and its files
return memory that was never written when an answer is too short.
"""

import errno
import io
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import islice
from typing import Any, BinaryIO, TypeVar

from botocore.exceptions import BotoCoreError, ClientError, ConnectionError, HTTPClientError, IncompleteReadError
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from pipelines.core.errors import StorageError

T = TypeVar("T")
LOGGER = logging.getLogger(__name__)
CHUNK = 4 << 20
"""Bytes of one read: enough to hide its latency, little enough to ask for again"""
CONNECT_SECONDS = 10
SILENT_SECONDS = 60
"""A connection that is silent for as long is given up"""
QUICK_SECONDS = 5
"""The same for the first question of a job"""
_PASSING_CODES = ("RequestTimeout", "BadDigest", "IncompleteBody", "NoSuchUpload")


def may_pass(error: BaseException) -> bool:
    """Whether trying again may mend an error of S3."""
    if isinstance(error, ClientError):
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        return status >= 500 or status in (408, 429) or error.response["Error"]["Code"] in _PASSING_CODES
    return isinstance(error, HTTPClientError | ConnectionError | IncompleteReadError)


RETRIES = Retrying(
    retry=retry_if_exception(may_pass),
    wait=wait_random_exponential(multiplier=1, max=30),
    stop=stop_after_attempt(8),
    reraise=True,
)
"""On top of boto3's own quick retries, of which AWS_MAX_ATTEMPTS is the number"""


_SINGLE = threading.local()


@contextmanager
def single_attempts() -> Iterator[None]:
    """Inside, and in this thread alone, what fails is not tried again: for what is repeated anyway."""
    _SINGLE.on = True
    try:
        yield
    finally:
        _SINGLE.on = False


def retried(uri: str, call: Callable[..., T], **arguments: Any) -> T:
    """Call, again after a growing and random wait while the error may pass. FileNotFoundError or StorageError."""

    def warn(state: RetryCallState) -> None:
        error = state.outcome and state.outcome.exception()
        LOGGER.warning("%s: attempt %d failed, trying again: %s", uri, state.attempt_number, error)

    try:
        if getattr(_SINGLE, "on", False):
            return call(**arguments)
        return RETRIES.copy(before_sleep=warn)(call, **arguments)
    except ClientError as error:
        if error.response["Error"]["Code"] in ("404", "NoSuchKey"):
            raise FileNotFoundError(errno.ENOENT, "no such object", uri) from None
        raise StorageError(f"{uri}: {error}") from error
    except BotoCoreError as error:
        raise StorageError(f"{uri}: {error}") from error


def code_of(error: StorageError) -> str:
    """S3's own name of what it refused; empty where it was no answer of S3."""
    cause = error.__cause__
    return cause.response["Error"]["Code"] if isinstance(cause, ClientError) else ""


def place(uri: str) -> dict[str, str]:
    """Bucket and key, by boto3's names. Raises ValueError for another scheme."""
    if not uri.startswith("s3://"):
        raise ValueError(f"{uri!r}: storage is a local path or s3://bucket/prefix")
    bucket, _, key = uri.removeprefix("s3://").rstrip("/").partition("/")
    return {"Bucket": bucket, "Key": key}


def client() -> Any:
    """Kept for as long as the environment stays the same: making one costs more than a read."""
    return _client(tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_"))))


@lru_cache(maxsize=1)
def _client(environment: tuple[tuple[str, str], ...]) -> Any:
    from botocore.config import Config

    return _new_client(
        Config(connect_timeout=CONNECT_SECONDS, read_timeout=SILENT_SECONDS, retries={"mode": "standard"})
    )


def check_reachable(uri: str) -> None:
    """Raise StorageError unless the store answers, and lists what lies there, within seconds: a job that only begins
    does not wait out an outage as one that is at work does."""
    from botocore.config import Config

    config = Config(connect_timeout=QUICK_SECONDS, read_timeout=QUICK_SECONDS, retries={"total_max_attempts": 2})
    bucket, folder = place(uri).values()
    try:
        _new_client(config).list_objects_v2(Bucket=bucket, Prefix=folder and f"{folder}/", MaxKeys=1)
    except (BotoCoreError, ClientError) as error:
        raise StorageError(f"{uri}: {error}") from error


def _new_client(config: Any) -> Any:
    import boto3  # where the storage is a folder, no process needs it

    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")  # boto3 reads the second alone
    # a session of its own: the default one would keep the first credentials it finds
    return boto3.Session().client("s3", region_name=region, config=config)


class ObjectFile(io.RawIOBase):
    """An object, read by ranges; a range that fails is asked for again."""

    def __init__(self, uri: str):
        head = retried(uri, client().head_object, **place(uri))
        self.uri, self.size, self.version, self.position = uri, head["ContentLength"], head["ETag"], 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        if start + offset < 0:
            raise ValueError(f"{self.uri}: cannot seek to {start + offset}")
        self.position = start + offset
        return self.position

    def readinto(self, buffer: Any) -> int:
        size = max(0, min(len(buffer), CHUNK, self.size - self.position))
        if size:
            buffer[:size] = retried(self.uri, self.read_range, start=self.position, size=size)
        self.position += size
        return size

    def readall(self) -> bytes:
        """The rest, by chunks: RawIOBase would ask for some KiB a time."""
        return b"".join(iter(lambda: self.read(CHUNK), b""))

    def read_range(self, start: int, size: int) -> bytes:
        # the version: parts of two objects must not be joined where one replaced the other
        answer = client().get_object(**place(self.uri), Range=f"bytes={start}-{start + size - 1}", IfMatch=self.version)
        data = answer["Body"].read()
        if len(data) != size:
            raise IncompleteReadError(actual_bytes=len(data), expected_bytes=size)
        return data


def write(uri: str, open_source: Callable[[], BinaryIO]) -> None:
    """Write an object whole or not at all; the source is opened anew for every attempt."""

    def upload() -> None:
        with open_source() as source:
            client().upload_fileobj(source, **place(uri))

    retried(uri, upload)


def exists(uri: str) -> bool:
    """Whether there is such an object or anything below such a folder."""
    try:
        retried(uri, client().head_object, **place(uri))
    except FileNotFoundError:
        return next(keys(uri), None) is not None
    return True


def keys(uri: str) -> Iterator[str]:
    """The keys of all objects below a folder."""
    return (entry["Key"] for entry in _entries(uri))


def checksums(uri: str) -> dict[str, str]:
    """Return {name below the folder: the store's own checksum and size}, nothing being read; "" is an object itself.

    Raises FileNotFoundError where there is neither an object nor a folder.
    """
    key = place(uri)["Key"]
    below = ((entry["Key"].removeprefix(f"{key}/"), entry) for entry in _entries(uri))
    found = {name: f"{entry['ETag']} {entry['Size']}" for name, entry in below if name}  # "": a mark of other tools
    if not key:
        return found
    try:
        head = retried(uri, client().head_object, **place(uri))
        found[""] = f"{head['ETag']} {head['ContentLength']}"
    except FileNotFoundError:
        if not found:
            raise
    return found


def _entries(uri: str) -> Iterator[dict[str, Any]]:
    bucket, folder = place(uri).values()
    request = {"Bucket": bucket, "Prefix": folder and f"{folder}/"}
    while True:
        page = retried(uri, client().list_objects_v2, **request)
        yield from page.get("Contents", [])
        if not page["IsTruncated"]:
            return
        request["ContinuationToken"] = page["NextContinuationToken"]


def delete_folder(uri: str) -> None:
    """Delete all objects below a folder. StorageError where one stays."""
    names = keys(uri)
    while some := [{"Key": key} for key in islice(names, 1000)]:
        answer = retried(uri, client().delete_objects, Bucket=place(uri)["Bucket"], Delete={"Objects": some})
        for error in answer.get("Errors", []):
            raise StorageError(f"{uri}: cannot delete {error['Key']}: {error['Code']}")
