"""Samples of parquet: tables with the images' bytes, and the metadata that img2dataset writes beside a tar."""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.core import storage
from pipelines.core.config import ConfigError
from pipelines.data.curate.samples import LARGEST_FILE, Columns, Sample, key_of, text_of

FAILED = "failed download"
DAMAGED = "damaged shard"
NOT_READABLE = "no readable shard"
# What readers of damaged bytes run into; text that is not UTF-8 is a ValueError.
_DAMAGE = (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError)


def check_columns(shard: str, columns: Columns) -> None:
    """Raise ConfigError where a parquet shard lacks a column that must be there."""
    with storage.open_file(shard) as file:
        try:
            found = pq.read_schema(file).names
        except _DAMAGE as error:
            _raise_if_of_store(error)
            return  # is rejected, with its reason, as a damaged shard among good ones is
    for setting in ("key", "global_key", "image", "caption", "label"):
        name = getattr(columns, setting)
        if name not in found and (name or setting == "image"):
            raise ConfigError(
                f"columns.{setting}={name!r}: {shard} has no such column; it has {', '.join(found)}; if it is not a "
                "shard, move it out of the source"
            )


def read_parquet(shard: str, columns: Columns) -> Iterator[Sample]:
    """Yield a sample for each row of a parquet shard, with a problem where a needed column is missing or the row is
    damaged; one without a key for a shard that is no parquet."""
    with storage.open_file(shard) as stream:
        try:
            file = pq.ParquetFile(stream, buffer_size=1 << 20)  # a row group may be gigabytes: read it by pages
            names = file.schema_arrow.names
        except _DAMAGE as error:
            _raise_if_of_store(error)
            yield Sample("", problem=NOT_READABLE)
            return
        size = stream.seek(0, 2)
        needed = {columns.key, columns.global_key, columns.image, columns.caption}
        if missing := needed - {*names, ""}:
            for row in range(min(file.metadata.num_rows, size)):
                yield Sample(str(row), problem=f"shard without column {min(missing)}")
            return
        yield from _rows_of(file, size, columns)


def _rows_of(file: pq.ParquetFile, size: int, columns: Columns) -> Iterator[Sample]:
    """Yield rows group by group, so that one whose pages are damaged costs its own rows only. A damaged footer may
    state any number of rows: no more are counted as lost than the file has bytes."""
    wanted = [c for c in dict.fromkeys((*columns.model_dump().values(), "status")) if c in file.schema_arrow.names]
    first = 0
    for group in range(file.num_row_groups):
        read, rows = 0, file.metadata.row_group(group).num_rows
        try:
            # one by one: a few bytes of a dictionary page can be many large cells
            for batch in file.iter_batches(1, row_groups=[group], columns=wanted):
                for row in batch.to_pylist():
                    yield _sample_of_row(row, str(first + read), columns)
                    read += 1
        except _DAMAGE as error:
            _raise_if_of_store(error)
        yield from (Sample(str(first + i), problem=DAMAGED) for i in range(read, min(rows, size)))
        first += rows


def _sample_of_row(row: dict[str, Any], number: str, columns: Columns) -> Sample:
    key, global_key = key_of(row.get(columns.key, number)), key_of(row.get(columns.global_key))
    row.pop(columns.key, None)
    image, caption = row.pop(columns.image), row.pop(columns.caption, "")
    if isinstance(image, dict):  # as `datasets` stores it
        image = image.get("bytes")
    if not key:
        return Sample(number, problem="no key")
    if not isinstance(image, bytes):
        return Sample(key, problem=FAILED if has_failed(row.get("status")) else "no image of its key")
    if len(image) > LARGEST_FILE:
        return Sample(key, problem="file too large")
    return Sample(key, image, text_of(caption).removeprefix("\ufeff"), row, global_key=global_key)


def has_failed(status: Any) -> bool:
    """Return whether img2dataset failed to download or resize an image; other tools' `status` columns say nothing."""
    return isinstance(status, str) and status.startswith("failed_to_")


class Metadata:
    """What the parquet beside a tar states: img2dataset's metadata, a table of images, or nothing that is needed.

    Attributes:
        is_table: It has the images' bytes and is a shard itself.
        problem: Why it cannot be read; a foreign table has none.
    """

    def __init__(self, uri: str, columns: Columns):
        self.is_table, self.problem = False, ""
        self._expected: dict[str, tuple[str, bool]] = {}  # {key to compare: (key, whether the download failed)}
        self._by_number = False
        if not storage.exists(uri):
            return
        with storage.open_file(uri) as file:
            try:
                schema = pq.read_schema(file)
                self.is_table = columns.image in schema.names
                if not self.is_table and {columns.key, "status"} <= set(schema.names):
                    self._read(pq.read_table(file, columns=[columns.key, "status"]), columns.key)
            except _DAMAGE as error:
                _raise_if_of_store(error)
                self.problem = "metadata beside tar cannot be read"

    def _read(self, table: pa.Table, key: str) -> None:
        kind = table.schema.field(key).type
        self._by_number = not (pa.types.is_string(kind) or pa.types.is_large_string(kind))
        for value, status in zip(table[key].to_pylist(), table["status"].to_pylist(), strict=True):
            if (name := key_of(value)) and (status == "success" or has_failed(status)):
                self._expected[self._comparable(name)] = (name, has_failed(status))

    def _comparable(self, key: str) -> str:
        """Return a key without the zeros in front that numbers lose, where the metadata has numbers."""
        return key.lstrip("0") if self._by_number else key

    def found(self, path: str) -> None:
        """Take note of a sample in the tar, which may have been packed into folders since."""
        for name in (path, path.rpartition("/")[2]):
            self._expected.pop(self._comparable(name), None)

    def missing(self) -> Iterator[tuple[str, bool]]:
        """Yield (key, whether its download failed) of what was not found."""
        yield from self._expected.values()


def _raise_if_of_store(error: BaseException) -> None:
    """Raise an error of the store: its shard is not a damaged one. (pyarrow's own OSErrors have no errno.)"""
    if isinstance(error, storage.StorageError) or (isinstance(error, OSError) and error.errno is not None):
        raise error
