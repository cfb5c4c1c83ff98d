"""Storage of artifacts and sources: a local folder, s3://bucket/prefix, or, read only, a data set on a hub.

Endpoint and credentials of S3 come from the usual AWS variables, those of the hub from HF_ENDPOINT and HF_TOKEN. Files
are written atomically: locally by renaming, on S3 because objects are atomic. A missing file raises FileNotFoundError.
A failed write, or a request that fails after all retries, raises StorageError with the URI.
"""

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

from asymflow.atomic import atomic_file
from asymflow.content import content_of
from pipelines.core import hub_dataset, s3
from pipelines.core.errors import StorageError as StorageError
from pipelines.core.scratch import scratch_folder

T = TypeVar("T")
_PROBE_BYTES = 1 << 16


def absolute(uri: str) -> str:
    """Return a local path as an absolute one, since workers have other working directories; other URIs unchanged."""
    return uri.rstrip("/") if "://" in uri else str(Path(uri).expanduser().absolute())


def join(uri: str, *parts: str) -> str:
    """Join path components to a URI."""
    return "/".join([uri.rstrip("/"), *parts])


def is_local(uri: str) -> bool:
    """Return whether a URI is a local path."""
    return "://" not in uri


def open_file(uri: str) -> io.BufferedReader:
    """Open a file for reading, seekable, as tarfile and pyarrow need it."""
    if is_local(uri):
        return open(absolute(uri), "rb")
    file = hub_dataset.HubFile(uri) if hub_dataset.is_on_hub(uri) else s3.ObjectFile(uri)
    return io.BufferedReader(file, file.chunk)


def read_bytes(uri: str) -> bytes:
    """Read a whole file."""
    with open_file(uri) as file:
        return file.read()


def write_bytes(uri: str, data: bytes) -> None:
    """Write a file atomically, creating its folder."""
    if not is_local(uri):
        s3.write(uri, lambda: io.BytesIO(data))
        return
    _write_local(uri, lambda partial: partial.write_bytes(data))


def put_file(local: Path, uri: str) -> None:
    """Copy a local file into the storage atomically."""
    if is_local(uri):
        _write_local(uri, lambda partial: shutil.copyfile(local, partial))
    else:
        s3.write(uri, lambda: open(local, "rb"))


def _write_local(uri: str, write: Callable[[Path], object]) -> None:
    """Call `write` with a hidden file beside the target, then rename it. Raises StorageError and removes the file."""
    try:
        with atomic_file(absolute(uri)) as partial:
            write(partial)
    except OSError as error:
        raise StorageError(error.errno, f"cannot write: {error.strerror or error}", uri) from error


def check_writable(uri: str) -> None:
    """Create a local folder, and raise StorageError unless files can be written to it."""
    probe = join(uri, f".{uuid4().hex}.probe")
    _write_local(probe, lambda partial: _write_through(partial, bytes(_PROBE_BYTES)))
    Path(absolute(probe)).unlink()


def _write_through(path: Path, data: bytes) -> None:
    """Write a file and sync it to the disk, since a full disk or a quota may fail only then."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def put_folder(local: Path, uri: str, last: str = "") -> None:
    """Copy all files below a local folder into the storage.

    Args:
        local: The local folder.
        uri: The folder in the storage.
        last: Name of the file to copy last, whose existence shows that all files are complete.
    """
    files = [path.relative_to(local) for path in local.rglob("*") if path.is_file()]
    for file in sorted(files, key=lambda path: (path.name == last, path)):
        put_file(local / file, join(uri, *file.parts))


@contextmanager
def local_folder(uri: str) -> Iterator[Path]:
    """Provide a stored folder as a local one: itself, or a temporary copy that is removed afterwards."""
    if is_local(uri):
        yield Path(absolute(uri))
        return
    with scratch_folder() as scratch:
        for file in list_files(uri):
            local = scratch / file[len(absolute(uri)) + 1 :]
            local.parent.mkdir(parents=True, exist_ok=True)
            with open_file(file) as source, local.open("wb") as target:
                shutil.copyfileobj(source, target)
        yield scratch


def exists(uri: str) -> bool:
    """Return whether a file or folder exists; S3 has no empty folders."""
    if is_local(uri):
        return Path(absolute(uri)).exists()
    return hub_dataset.exists(uri) if hub_dataset.is_on_hub(uri) else s3.exists(uri)


def list_files(uri: str, suffix: str = "") -> list[str]:
    """Return the sorted URIs of all files below a folder, without hidden and partial ones; empty without a folder."""
    base = absolute(uri)
    if is_local(uri):
        import pyarrow.fs as pafs  # not needed to read settings that name a file

        selector = pafs.FileSelector(base, recursive=True, allow_not_found=True)
        infos = pafs.LocalFileSystem().get_file_info(selector)
        names = [info.path[len(base) + 1 :] for info in infos if info.type == pafs.FileType.File]
    elif hub_dataset.is_on_hub(uri):
        names = hub_dataset.list_paths(uri)
    else:
        names = [f"s3://{s3.bucket_and_key(uri)['Bucket']}/{key}"[len(base) + 1 :] for key in s3.keys(uri)]
    # an object named like the folder, or like a folder below it, is a folder marker of other tools
    listed = [name for name in names if name and name.endswith(suffix) and _is_data_file(name)]
    return [join(base, name) for name in sorted(listed)]


def _is_data_file(name: str) -> bool:
    """Return whether a file below a folder is neither hidden, partial, nor a folder marker."""
    return not name.endswith((".partial", "/")) and not any(part.startswith(".") for part in name.split("/"))


def fingerprint(uri: str) -> str:
    """Return a hash of a file's or folder's content, 16 hexadecimal digits, independent of its path.

    Local files are hashed by content, others by name, size and the store's checksum. Hidden files are ignored.

    Raises:
        FileNotFoundError: There is no such file or folder.
    """
    if is_local(uri):
        return content_of(absolute(uri))
    checksums = hub_dataset.checksums(uri) if hub_dataset.is_on_hub(uri) else s3.checksums(uri)
    found = {name: checksum for name, checksum in checksums.items() if _is_data_file(name)}
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]


def delete_folder(uri: str) -> None:
    """Delete a folder with all its files, if it exists."""
    if not is_local(uri):
        s3.delete_folder(uri)
    elif exists(uri):
        shutil.rmtree(absolute(uri))


def delete_file(uri: str) -> None:
    """Delete a file, if it exists."""
    if is_local(uri):
        Path(absolute(uri)).unlink(missing_ok=True)
    else:
        s3.retried(uri, s3.client().delete_object, **s3.bucket_and_key(uri))


def write_file(uri: str, write: Callable[[Path], None]) -> None:
    """Call `write` with a temporary local path, then copy the file into the storage atomically."""
    with scratch_folder() as scratch:
        local = scratch / uri.rpartition("/")[2]
        write(local)
        put_file(local, uri)


def read_file(uri: str, read: Callable[[Path], T]) -> T:
    """Return `read(path)`, where `path` is a stored file or a temporary local copy of it."""
    if is_local(uri):
        return read(Path(uri))
    with scratch_folder() as scratch:
        local = scratch / uri.rpartition("/")[2]
        with open_file(uri) as source, local.open("wb") as target:
            shutil.copyfileobj(source, target)
        return read(local)
