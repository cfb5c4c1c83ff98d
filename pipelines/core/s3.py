"""S3 backend of `storage`, on boto3: failed requests are retried, and objects are read and written completely or not.

pyarrow is not used: its output streams complete an object even when an exception closes them, and its files return
uninitialized memory when a response is too short.
"""

import errno
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
from pipelines.core.range_file import RangeFile

T = TypeVar("T")
LOGGER = logging.getLogger(__name__)
CHUNK = 4 << 20
"""Bytes per read: large enough to hide the latency, small enough to retry"""
CONNECT_SECONDS = 10
SILENT_SECONDS = 60
"""Read timeout of a connection"""
QUICK_SECONDS = 5
"""Both timeouts for a job's first request"""
_TRANSIENT_CODES = ("RequestTimeout", "BadDigest", "IncompleteBody", "NoSuchUpload")


def is_transient(error: BaseException) -> bool:
    """Return whether a retry may succeed after an error of S3."""
    if isinstance(error, ClientError):
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        return status >= 500 or status in (408, 429) or error.response["Error"]["Code"] in _TRANSIENT_CODES
    return isinstance(error, HTTPClientError | ConnectionError | IncompleteReadError)


RETRIES = Retrying(
    retry=retry_if_exception(is_transient),
    wait=wait_random_exponential(multiplier=1, max=30),
    stop=stop_after_attempt(8),
    reraise=True,
)
"""In addition to boto3's own quick retries, whose number is AWS_MAX_ATTEMPTS"""


_NO_RETRIES = threading.local()


@contextmanager
def single_attempts() -> Iterator[None]:
    """Disable retries inside the context, in this thread only; for requests that the caller repeats anyway."""
    _NO_RETRIES.on = True
    try:
        yield
    finally:
        _NO_RETRIES.on = False


def retried(uri: str, call: Callable[..., T], **arguments: Any) -> T:
    """Call a function; retry transient errors with random exponential backoff.

    Args:
        uri: The object, for messages.
        call: A request of boto3.
        arguments: Passed to `call`.

    Raises:
        FileNotFoundError: The object does not exist.
        StorageError: The request failed.
    """

    def warn(state: RetryCallState) -> None:
        error = state.outcome and state.outcome.exception()
        LOGGER.warning("%s: attempt %d failed, retrying: %s", uri, state.attempt_number, error)

    try:
        if getattr(_NO_RETRIES, "on", False):
            return call(**arguments)
        return RETRIES.copy(before_sleep=warn)(call, **arguments)
    except ClientError as error:
        if error.response["Error"]["Code"] in ("404", "NoSuchKey"):
            raise FileNotFoundError(errno.ENOENT, "no such object", uri) from None
        raise StorageError(f"{uri}: {error}") from error
    except BotoCoreError as error:
        raise StorageError(f"{uri}: {error}") from error


def code_of(error: StorageError) -> str:
    """Return S3's error code of an error, or an empty string if S3 did not respond."""
    cause = error.__cause__
    return cause.response["Error"]["Code"] if isinstance(cause, ClientError) else ""


def bucket_and_key(uri: str) -> dict[str, str]:
    """Split a URI into bucket and key, as boto3's arguments. Raises ValueError for another scheme than s3."""
    if not uri.startswith("s3://"):
        raise ValueError(f"{uri!r}: storage is a local path or s3://bucket/prefix")
    bucket, _, key = uri.removeprefix("s3://").rstrip("/").partition("/")
    return {"Bucket": bucket, "Key": key}


def client() -> Any:
    """Return the boto3 client, cached until an AWS variable changes: creating one takes longer than a read."""
    return _client(tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_"))))


@lru_cache(maxsize=1)
def _client(environment: tuple[tuple[str, str], ...]) -> Any:
    from botocore.config import Config

    return _new_client(
        Config(connect_timeout=CONNECT_SECONDS, read_timeout=SILENT_SECONDS, retries={"mode": "standard"})
    )


def check_reachable(uri: str) -> None:
    """Raise StorageError unless the store lists the folder within seconds.

    A new job fails fast, while a running job retries until an outage is over.
    """
    from botocore.config import Config

    config = Config(connect_timeout=QUICK_SECONDS, read_timeout=QUICK_SECONDS, retries={"total_max_attempts": 2})
    bucket, folder = bucket_and_key(uri).values()
    try:
        _new_client(config).list_objects_v2(Bucket=bucket, Prefix=folder and f"{folder}/", MaxKeys=1)
    except (BotoCoreError, ClientError) as error:
        raise StorageError(f"{uri}: {error}") from error


def _new_client(config: Any) -> Any:
    import boto3  # not needed for a local storage

    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")  # boto3 reads only the second
    # a new session, because the default one would keep the first credentials that it finds
    return boto3.Session().client("s3", region_name=region, config=config)


class ObjectFile(RangeFile):
    """Seekable file over an S3 object; each range is requested with retries."""

    def __init__(self, uri: str):
        head = retried(uri, client().head_object, **bucket_and_key(uri))
        super().__init__(uri, head["ContentLength"], CHUNK)
        self.version = head["ETag"]

    def read_range(self, start: int, size: int) -> bytes:
        """Return the bytes of a range; see `RangeFile.read_range`."""
        return retried(self.uri, self._request, start=start, size=size)

    def _request(self, start: int, size: int) -> bytes:
        # IfMatch: ranges of two versions must not be joined if the object is replaced in between
        bytes_range = f"bytes={start}-{start + size - 1}"
        answer = client().get_object(**bucket_and_key(self.uri), Range=bytes_range, IfMatch=self.version)
        data = answer["Body"].read()
        if len(data) != size:
            raise IncompleteReadError(actual_bytes=len(data), expected_bytes=size)
        return data


def write(uri: str, open_source: Callable[[], BinaryIO]) -> None:
    """Write an object atomically; `open_source` is called for every attempt."""

    def upload() -> None:
        with open_source() as source:
            client().upload_fileobj(source, **bucket_and_key(uri))

    retried(uri, upload)


def exists(uri: str) -> bool:
    """Return whether the object exists, or any object below the folder."""
    try:
        retried(uri, client().head_object, **bucket_and_key(uri))
    except FileNotFoundError:
        return next(keys(uri), None) is not None
    return True


def keys(uri: str) -> Iterator[str]:
    """Return an iterator over the keys of all objects below a folder."""
    return (entry["Key"] for entry in _entries(uri))


def checksums(uri: str) -> dict[str, str]:
    """Return {path below the folder: checksum and size by the store} without reading data.

    The path is empty for an object at the URI itself.

    Raises:
        FileNotFoundError: There is no such object and no such folder.
    """
    key = bucket_and_key(uri)["Key"]
    below = ((entry["Key"].removeprefix(f"{key}/"), entry) for entry in _entries(uri))
    found = {name: f"{entry['ETag']} {entry['Size']}" for name, entry in below if name}  # "": a folder marker
    if not key:
        return found
    try:
        head = retried(uri, client().head_object, **bucket_and_key(uri))
        found[""] = f"{head['ETag']} {head['ContentLength']}"
    except FileNotFoundError:
        if not found:
            raise
    return found


def _entries(uri: str) -> Iterator[dict[str, Any]]:
    bucket, folder = bucket_and_key(uri).values()
    request = {"Bucket": bucket, "Prefix": folder and f"{folder}/"}
    while True:
        page = retried(uri, client().list_objects_v2, **request)
        yield from page.get("Contents", [])
        if not page["IsTruncated"]:
            return
        request["ContinuationToken"] = page["NextContinuationToken"]


def delete_folder(uri: str) -> None:
    """Delete all objects below a folder. Raises StorageError if one cannot be deleted."""
    names = keys(uri)
    while some := [{"Key": key} for key in islice(names, 1000)]:
        answer = retried(uri, client().delete_objects, Bucket=bucket_and_key(uri)["Bucket"], Delete={"Objects": some})
        for error in answer.get("Errors", []):
            raise StorageError(f"{uri}: cannot delete {error['Key']}: {error['Code']}")
