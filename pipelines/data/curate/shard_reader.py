"""Reading a crawl: the shards that img2dataset writes, webdataset tars or parquet, one sample at a time.

Shards stream: neither their number nor their size changes what is held in memory. Nothing is unpacked to disk. What
cannot be read becomes a sample with a `problem`, so that it is counted.
"""

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.core import storage
from pipelines.core.config import ConfigError
from pipelines.data.curate.samples import Columns as Columns

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
TAR_ENDINGS = (".tar", ".tar.gz", ".tgz")
LARGEST_FILE = 256 << 20  # bytes of one member or one cell; no picture is so large, and a bomb would be
_ROWS = 16  # of a parquet shard decoded at once


@dataclass
class Sample:
    """One picture of a crawl with what is known of it, or the reason why there is none."""

    key: str
    image: bytes = b""
    caption: str = ""
    record: dict[str, Any] = field(default_factory=dict)
    """Everything else that the crawl says of it, by the crawl's names"""
    problem: str = ""


def list_shards(source: str) -> dict[str, str]:
    """{name: URI} of a folder's shards, by their path below it: all tars, and every parquet file that is not the
    metadata of the tar beside it. ConfigError where there are none."""
    files = [f for ending in (*TAR_ENDINGS, ".parquet") for f in storage.list_files(source, ending)]
    tars = {_stem(f) for f in files if f.endswith(TAR_ENDINGS)}
    shards = sorted(f for f in files if f.endswith(TAR_ENDINGS) or _stem(f) not in tars)
    if not shards:
        raise ConfigError(
            f"source={source!r}: no .tar or .parquet shards there; point it at img2dataset output, or make the "
            "demo's with `python jobs/make_demo_data.py`"
        )
    root = storage.absolute(source)
    named = {_stem(shard)[len(root) + 1 :].replace("/", "-"): shard for shard in shards}
    if len(named) != len(shards):
        raise ConfigError(f"source={source!r}: two shards have one name but for their endings; keep one of them")
    return named


def list_classes(source: str) -> dict[str, str]:
    """{class: URI} of the folders of pictures and the tars in a folder, by name. ConfigError where there are none."""
    root, found = storage.absolute(source), {}
    for file in storage.list_files(source):
        name, inside, rest = file[len(root) + 1 :].partition("/")
        if inside and rest.rpartition(".")[2].lower() in IMAGE_EXTENSIONS:
            found[name] = f"{root}/{name}"
        elif not inside and name.endswith(TAR_ENDINGS):
            found[_stem(name)] = file
    if not found:
        raise ConfigError(f"source={source!r}: labels=folder needs a folder of pictures, or a tar, for each class")
    return dict(sorted(found.items()))


def read_class(place: str) -> Iterator[Sample]:
    """The pictures of a folder or tar of one class; their names are their keys."""
    if place.endswith(TAR_ENDINGS):
        for key, members in read_members(place):
            yield _picture_of(key, members)
        return
    for file in storage.list_files(place):
        key, _, extension = file[len(place) + 1 :].rpartition(".")
        if extension.lower() in IMAGE_EXTENSIONS:
            yield Sample(key, storage.read_bytes(file))


def _picture_of(key: str, members: dict[str, bytes]) -> Sample:
    problem = next((text for name, text in _PROBLEMS.items() if name in members), "")
    image = next((members[e] for e in IMAGE_EXTENSIONS if e in members), b"")
    return Sample(key, image, problem=problem or ("" if image else "no picture"))


def key_prefix(source: str, shard: str) -> str:
    """Folders of a crawl each number their pictures from 0, so a key begins with its folder below the source."""
    folder = shard.rpartition("/")[0][len(storage.absolute(source)) + 1 :]
    return f"{folder}/" if folder else ""


def check_columns(shard: str, columns: Columns) -> None:
    """ConfigError where a parquet shard lacks a column that must be there."""
    with storage.open_file(shard) as file:
        found = pq.read_schema(file).names
    for setting in ("key", "image", "caption", "label"):
        name = getattr(columns, setting)
        if name not in found and (name or setting == "image"):
            raise ConfigError(f"columns.{setting}={name!r}: {shard} has no such column; it has {', '.join(found)}")


def read_shard(shard: str, columns: Columns) -> Iterator[Sample]:
    """The samples of a tar or parquet shard. A store that fails raises: its pictures are not lost."""
    if shard.endswith(TAR_ENDINGS):
        yield from read_tar(shard, columns)
    else:
        yield from read_parquet(shard, columns)


def _stem(shard: str) -> str:
    for ending in (*TAR_ENDINGS, ".parquet"):
        if shard.endswith(ending):
            return shard.removesuffix(ending)
    raise ValueError(f"{shard} is no shard")


def read_tar(shard: str, columns: Columns) -> Iterator[Sample]:
    """The samples of a tar, then what the metadata beside it (if there is any) promised and the tar has not."""
    metadata = f"{_stem(shard)}.parquet"
    failed, promised = read_metadata(metadata, columns) if storage.exists(metadata) else ([], set())
    yield from failed
    for key, members in read_members(shard):
        promised.discard(key)
        yield _sample_of(key, members, columns)
    yield from (Sample(key, problem="not in the tar") for key in sorted(promised))


def read_metadata(metadata: str, columns: Columns) -> tuple[list[Sample], set[str]]:
    """(samples that img2dataset could not fetch, keys of those that the tar must hold)."""
    with storage.open_file(metadata) as file:
        rows = pq.read_table(file, columns=[columns.key, "status"]).to_pylist()
    failed = [Sample(r[columns.key], problem="failed download") for r in rows if r["status"] != "success"]
    return failed, {r[columns.key] for r in rows if r["status"] == "success"}


def _sample_of(key: str, members: dict[str, bytes], columns: Columns) -> Sample:
    for problem in ("unsafe path", "cut off", "too large"):
        if problem in members:
            return Sample(key, problem=_PROBLEMS[problem])
    image = next((members[e] for e in IMAGE_EXTENSIONS if e in members), None)
    if image is None:
        return Sample(key, problem="no picture")
    try:
        record = json.loads(members["json"])
        caption = members["txt"].decode() if "txt" in members else record.get(columns.caption)
    except (KeyError, AttributeError, ValueError, RecursionError):
        return Sample(key, problem="no readable metadata")
    if not isinstance(record, dict):
        return Sample(key, problem="no readable metadata")
    return Sample(key, image, _text(caption), record)


_PROBLEMS = {"unsafe path": "unsafe path in tar", "cut off": "tar cut off", "too large": "file too large"}


def read_members(shard: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Stream a tar, plain or compressed: (key, {extension: bytes}) for adjacent members of one key.

    A name that leads out of the tar yields {"unsafe path": b""}, a tar cut off in the middle ends with a sample
    {"cut off": b""}, a member beyond LARGEST_FILE gives its sample {"too large": b""}. An extension that comes again
    begins another sample.
    """
    current: str | None = None
    members: dict[str, bytes] = {}
    with storage.open_file(shard) as stream:
        mode = "r|gz" if stream.peek(2)[:2] == b"\x1f\x8b" else "r|"
        try:
            with tarfile.open(fileobj=stream, mode=mode, tarinfo=_Header) as tar:  # type: ignore[call-overload]
                while (member := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every header it has seen
                    if member.name.startswith("/") or ".." in member.name.split("/") or not member.isreg():
                        if not member.isdir():
                            yield _printable(member.name), {"unsafe path": b""}
                        continue
                    key, _, extension = _printable(member.name).rpartition("/")[2].partition(".")
                    extension = extension.lower()
                    if current is not None and (key != current or extension in members):
                        yield current, members
                        members = {}
                    current = key
                    if member.size > LARGEST_FILE:
                        members["too large"] = b""
                        continue
                    file = tar.extractfile(member)
                    members[extension] = file.read() if file else b""
                if not getattr(tar, "ended", False):
                    raise EOFError
        except (tarfile.TarError, EOFError):
            current, members = current or _stem(shard).rpartition("/")[2], {**members, "cut off": b""}
    if current is not None:
        yield current, members


class _Header(tarfile.TarInfo):
    """Remembers that the tar's end was marked: tarfile takes a broken header, or none, for the end as well."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            tarfile_.ended = True  # type: ignore[attr-defined]
            raise


def _printable(text: str) -> str:
    """Names in a tar are bytes, and json may hold half a surrogate pair: not all of it is UTF-8, as parquet wants."""
    return text.encode("utf-8", "replace").decode()


def _text(value: Any) -> str:
    return _printable(value) if isinstance(value, str) else ""


def read_parquet(shard: str, columns: Columns) -> Iterator[Sample]:
    """The rows of a parquet shard; one that is none, or that lacks a column, is a single sample with its problem."""
    name = _stem(shard).rpartition("/")[2]
    with storage.open_file(shard) as stream:
        try:
            file = pq.ParquetFile(stream, buffer_size=1 << 20)  # a row group may be gigabytes: read it by pages
            found = set(file.schema_arrow.names)
        except _DAMAGE as error:
            _raise_if_of_store(error)
            yield Sample(name, problem="no readable shard")
            return
        if missing := {columns.key, columns.image, columns.caption} - found - {""}:
            yield Sample(name, problem=f"shard without column {min(missing)}")
            return
        yield from _rows_of(file, name, columns)


def _rows_of(file: pq.ParquetFile, name: str, columns: Columns) -> Iterator[Sample]:
    """Group by group, so that one whose pages are damaged costs its own rows only."""
    wanted = [c for c in (*columns.model_dump().values(), "status") if c in file.schema_arrow.names]
    for group in range(file.num_row_groups):
        read, rows = 0, file.metadata.row_group(group).num_rows
        try:
            for batch in file.iter_batches(_ROWS, row_groups=[group], columns=wanted):
                for row in batch.to_pylist():
                    yield _sample_of_row(row, f"{name}-{group}-{read}", columns)
                    read += 1
        except _DAMAGE as error:
            _raise_if_of_store(error)
            yield from (Sample(f"{name}-{group}-{i}", problem="damaged shard") for i in range(read, rows))


# What readers of damaged bytes run into; a text that is not UTF-8 is a ValueError.
_DAMAGE = (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError)


def _raise_if_of_store(error: BaseException) -> None:
    """A shard that cannot be had is not a damaged one. (pyarrow's own OSErrors carry no errno.)"""
    if isinstance(error, storage.StorageError) or (isinstance(error, OSError) and error.errno is not None):
        raise error


def _sample_of_row(row: dict[str, Any], number: str, columns: Columns) -> Sample:
    key, caption = row.pop(columns.key, number), row.pop(columns.caption, "")
    image = row.pop(columns.image)
    if isinstance(image, dict):  # as datasets of the hub have it
        image = image.get("bytes")
    if not isinstance(key, str | int) or key == "":
        return Sample(number, problem="no key")
    if row.get("status", "success") != "success":
        return Sample(str(key), problem="failed download")
    if not isinstance(image, bytes):
        return Sample(str(key), problem="no picture")
    if len(image) > LARGEST_FILE:
        return Sample(str(key), problem="file too large")
    return Sample(str(key), image, _text(caption), row)
