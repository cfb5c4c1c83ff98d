"""Where artifacts live: a local folder or s3://bucket/prefix.

Endpoint and credentials of S3 come from the usual AWS variables. A file appears whole or not at all: locally by
renaming, on S3 because an object does. What is absent raises FileNotFoundError; what cannot be written, or what S3
refuses or still fails to do when tried again, StorageError with the URI.
"""

import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

from asymflow.atomic import atomic_file
from asymflow.content import content_of
from pipelines.core import s3
from pipelines.core.errors import StorageError as StorageError

T = TypeVar("T")
_PROBE_BYTES = 1 << 16


def absolute(uri: str) -> str:
    """A local path made absolute (workers have other working directories); other URIs as they are."""
    return uri.rstrip("/") if "://" in uri else str(Path(uri).expanduser().absolute())


def join(uri: str, *parts: str) -> str:
    return "/".join([uri.rstrip("/"), *parts])


def is_local(uri: str) -> bool:
    return "://" not in uri


def open_file(uri: str) -> io.BufferedReader:
    """A seekable file for reading, as tarfile, pyarrow and the like take it."""
    if is_local(uri):
        return open(absolute(uri), "rb")
    return io.BufferedReader(s3.ObjectFile(uri), s3.CHUNK)


def read_bytes(uri: str) -> bytes:
    with open_file(uri) as file:
        return file.read()


def write_bytes(uri: str, data: bytes) -> None:
    """Write a whole file atomically, making its folder."""
    if not is_local(uri):
        s3.write(uri, lambda: io.BytesIO(data))
        return
    _write_local(uri, lambda partial: partial.write_bytes(data))


def put_file(local: Path, uri: str) -> None:
    """Copy a local file into the storage, whole or not at all."""
    if is_local(uri):
        _write_local(uri, lambda partial: shutil.copyfile(local, partial))
    else:
        s3.write(uri, lambda: open(local, "rb"))


def _write_local(uri: str, write: Callable[[Path], object]) -> None:
    """Let `write` fill a hidden file beside the target, then rename it. Raises StorageError, and leaves no part."""
    try:
        with atomic_file(absolute(uri)) as partial:
            write(partial)
    except OSError as error:
        raise StorageError(error.errno, f"cannot write: {error.strerror or error}", uri) from error


def check_writable(uri: str) -> None:
    """Raise StorageError unless files can be written below a local folder, which is made."""
    probe = join(uri, f".{uuid4().hex}.probe")
    _write_local(probe, lambda partial: _write_through(partial, bytes(_PROBE_BYTES)))
    Path(absolute(probe)).unlink()


def _write_through(path: Path, data: bytes) -> None:
    """To the disk: a full one, or a quota, may tell only then."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def put_folder(local: Path, uri: str, last: str = "") -> None:
    """Copy all files below a local folder into the storage; the one named `last`, by which others know that all stand,
    at the end."""
    files = [path.relative_to(local) for path in local.rglob("*") if path.is_file()]
    for file in sorted(files, key=lambda path: (path.name == last, path)):
        put_file(local / file, join(uri, *file.parts))


@contextmanager
def local_folder(uri: str) -> Iterator[Path]:
    """A local folder with the files of a stored one; what was fetched for it is removed afterwards."""
    if is_local(uri):
        yield Path(absolute(uri))
        return
    with tempfile.TemporaryDirectory() as scratch:
        for file in list_files(uri):
            local = Path(scratch) / file[len(absolute(uri)) + 1 :]
            local.parent.mkdir(parents=True, exist_ok=True)
            with open_file(file) as source, local.open("wb") as target:
                shutil.copyfileobj(source, target)
        yield Path(scratch)


def exists(uri: str) -> bool:
    """Whether there is such a file or folder; S3 has no empty folders."""
    return Path(absolute(uri)).exists() if is_local(uri) else s3.exists(uri)


def list_files(uri: str, suffix: str = "") -> list[str]:
    """URIs of all files below a folder, sorted; hidden and unfinished ones left out. Empty where there is none."""
    base = absolute(uri)
    if is_local(uri):
        import pyarrow.fs as pafs  # settings that name a file are read without it

        selector = pafs.FileSelector(base, recursive=True, allow_not_found=True)
        infos = pafs.LocalFileSystem().get_file_info(selector)
        names = [info.path[len(base) + 1 :] for info in infos if info.type == pafs.FileType.File]
    else:
        names = [f"s3://{s3.place(uri)['Bucket']}/{key}"[len(base) + 1 :] for key in s3.keys(uri)]
    # an object named like the folder, or a folder below it, is but a mark that other tools leave
    good = [name for name in names if name and name.endswith(suffix) and _is_whole(name)]
    return [join(base, name) for name in sorted(good)]


def _is_whole(name: str) -> bool:
    """Whether a file below a folder is neither hidden, unfinished, nor a mark for a folder."""
    return not name.endswith((".partial", "/")) and not any(part.startswith(".") for part in name.split("/"))


def fingerprint(uri: str) -> str:
    """Return 16 hexadecimal digits of what a file or folder holds, wherever it lies; hidden files do not count.

    Locally it is the content; of S3 it is names, sizes and the store's checksums. Raises FileNotFoundError.
    """
    if is_local(uri):
        return content_of(absolute(uri))
    found = {name: checksum for name, checksum in s3.checksums(uri).items() if _is_whole(name)}
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]


def delete_folder(uri: str) -> None:
    if not is_local(uri):
        s3.delete_folder(uri)
    elif exists(uri):
        shutil.rmtree(absolute(uri))


def delete_file(uri: str) -> None:
    """Delete a file; one that is absent already is no error."""
    if is_local(uri):
        Path(absolute(uri)).unlink(missing_ok=True)
    else:
        s3.retried(uri, s3.client().delete_object, **s3.place(uri))


def write_file(uri: str, write: Callable[[Path], None]) -> None:
    """Let `write` make a local file, then put it into the storage whole."""
    with tempfile.TemporaryDirectory() as scratch:
        local = Path(scratch) / uri.rpartition("/")[2]
        write(local)
        put_file(local, uri)


def read_file(uri: str, read: Callable[[Path], T]) -> T:
    """Call `read` with a local path of a stored file."""
    if is_local(uri):
        return read(Path(uri))
    with tempfile.TemporaryDirectory() as scratch:
        local = Path(scratch) / uri.rpartition("/")[2]
        with open_file(uri) as source, local.open("wb") as target:
            shutil.copyfileobj(source, target)
        return read(local)
