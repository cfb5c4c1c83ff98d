"""Where artifacts live: a local folder or s3://bucket/prefix, through pyarrow's file systems.

Endpoint and credentials of S3 come from the usual AWS variables. A file appears whole or not at all: locally by
renaming, on S3 because an object does.
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import pyarrow.fs as pafs

T = TypeVar("T")


def absolute(uri: str) -> str:
    """A local path made absolute (workers have other working directories); other URIs as they are."""
    return uri.rstrip("/") if "://" in uri else str(Path(uri).expanduser().absolute())


def join(uri: str, *parts: str) -> str:
    return "/".join([uri.rstrip("/"), *parts])


def is_local(uri: str) -> bool:
    return "://" not in uri


def open_filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """(file system, path in it). Raises ValueError for a scheme that is not supported."""
    if is_local(uri):
        return pafs.LocalFileSystem(), absolute(uri)
    if not uri.startswith("s3://"):
        raise ValueError(f"{uri!r}: storage is a local path or s3://bucket/prefix")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    options = {}
    if endpoint:
        scheme, _, host = endpoint.rpartition("://")
        options = {"endpoint_override": host, "scheme": scheme or "https"}
    if region := os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
        options["region"] = region
    return pafs.S3FileSystem(**options), uri.removeprefix("s3://").rstrip("/")


def read_bytes(uri: str) -> bytes:
    filesystem, path = open_filesystem(uri)
    with filesystem.open_input_file(path) as file:
        return file.read()


def write_bytes(uri: str, data: bytes) -> None:
    """Write a whole file atomically, making its folder."""
    filesystem, path = open_filesystem(uri)
    if not is_local(uri):
        with filesystem.open_output_stream(path) as stream:
            stream.write(data)
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{uuid4().hex}.partial")
    partial.write_bytes(data)
    os.replace(partial, target)


def put_file(local: Path, uri: str) -> None:
    """Copy a local file into the storage, whole or not at all."""
    if is_local(uri):
        partial = f"{uri}.{uuid4().hex}.partial"
        Path(uri).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(local, partial)
        os.replace(partial, uri)
    else:
        filesystem, path = open_filesystem(uri)
        pafs.copy_files(str(local), path, pafs.LocalFileSystem(), filesystem)


def exists(uri: str) -> bool:
    filesystem, path = open_filesystem(uri)
    return filesystem.get_file_info(path).type != pafs.FileType.NotFound


def list_files(uri: str, suffix: str = "") -> list[str]:
    """URIs of all files below a folder, sorted; hidden and unfinished ones left out. Empty where there is none."""
    filesystem, path = open_filesystem(uri)
    selector = pafs.FileSelector(path, recursive=True, allow_not_found=True)
    found = [i.path for i in filesystem.get_file_info(selector) if i.type == pafs.FileType.File]
    names = [p[len(path) + 1 :] for p in found]
    good = [n for n in names if n.endswith(suffix) and not n.endswith(".partial") and not _hidden(n)]
    return [join(absolute(uri), name) for name in sorted(good)]


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def delete_folder(uri: str) -> None:
    filesystem, path = open_filesystem(uri)
    if exists(uri):
        filesystem.delete_dir(path)


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
        local.write_bytes(read_bytes(uri))
        return read(local)
