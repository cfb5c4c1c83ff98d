"""Read samples from parquet shards, and the metadata that img2dataset writes beside a tar."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.core import storage
from pipelines.data.curate.columns import MissingColumn, find_columns_of_schema
from pipelines.data.curate.samples import (
    LARGEST_FILE,
    NO_REFERENCE,
    Columns,
    Sample,
    explain_reference,
    key_of,
    text_of,
)
from pipelines.data.curate.source_files import TOO_LARGE, BadFile, SourceReader, path_of

FAILED = "failed download"
DAMAGED = "damaged shard"
NOT_READABLE = "no readable shard"
DAMAGE = (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError)
"""Errors of reading damaged bytes; text that is not UTF-8 and BadFile are ValueErrors"""


def read_parquet(shard: str, columns: Columns) -> Iterator[Sample]:
    """Yield a sample for each row of a parquet shard.

    A sample has a problem if a required column is missing or the row is damaged. A file that is not parquet yields one
    sample without a key.
    """
    with ExitStack() as stack:
        try:
            stream = stack.enter_context(stack.enter_context(SourceReader()).open_table(shard))
            file = pq.ParquetFile(stream, buffer_size=1 << 20)  # a row group may be gigabytes: read it by pages
        except DAMAGE as error:
            yield Sample("", problem=explain_unopened(error))
            return
        size = stream.seek(0, 2)
        try:
            found = find_columns_of_schema(columns, path_of(shard), file.schema_arrow)
        except MissingColumn as error:
            for row in range(min(file.metadata.num_rows, size)):
                yield Sample(str(row), problem=error.reason)
            return
        yield from _rows_of(file, size, found)


def _rows_of(file: pq.ParquetFile, size: int, columns: Columns) -> Iterator[Sample]:
    """Yield the samples one row group at a time, so that damaged pages affect only their own row group.

    A damaged footer may state any number of rows, so at most as many lost rows are counted as the file has bytes.
    """
    present = [c for c in dict.fromkeys((*columns.names, "status")) if c in file.schema_arrow.names]
    first = 0
    for group in range(file.num_row_groups):
        read, rows = 0, file.metadata.row_group(group).num_rows
        try:
            # row by row, because a few bytes of a dictionary page can expand to many large cells
            for batch in file.iter_batches(1, row_groups=[group], columns=present):
                for row in batch.to_pylist():
                    yield sample_of_row(row, str(first + read), columns)
                    read += 1
        except DAMAGE as error:
            raise_if_of_store(error)
        yield from (Sample(str(first + i), problem=DAMAGED) for i in range(read, min(rows, size)))
        first += rows


def sample_of_row(row: dict[str, Any], number: str, columns: Columns) -> Sample:
    """Return the sample of a table's row, given its number and the columns that the table has."""
    key, global_key = key_of(row.get(columns.key, number)), key_of(row.get(columns.global_key))
    if columns.key != columns.caption_key:  # else the caption is found by it
        row.pop(columns.key, None)
    image, caption = _bytes_of(row.pop(columns.image)), row.pop(columns.caption, "")
    references = [_bytes_of(one) for name in columns.references for one in values_of(row.pop(name, None))]
    if not key:
        return Sample(number, problem="no key")
    if not isinstance(image, bytes):
        return Sample(key, problem=FAILED if has_failed(row.get("status")) else "no image of its key")
    if len(image) > LARGEST_FILE:
        return Sample(key, problem=TOO_LARGE)
    found = [one for one in references if isinstance(one, bytes)]
    if len(found) < len(references):
        return Sample(key, problem=NO_REFERENCE)
    if any(len(one) > LARGEST_FILE for one in found):
        return Sample(key, problem=explain_reference(TOO_LARGE))
    text = text_of(caption).removeprefix("\ufeff")
    return Sample(key, image, text, row, global_key=global_key, references=found)


def values_of(cell: Any) -> list[Any]:
    """Return the reference images in a cell, which holds one, a list, or none."""
    return cell if isinstance(cell, list) else [] if cell is None or cell == "" else [cell]


def _bytes_of(image: Any) -> Any:
    return image.get("bytes") if isinstance(image, dict) else image  # the layout of Hugging Face `datasets`


def has_failed(status: Any) -> bool:
    """Return whether img2dataset failed to download or resize an image; `status` of other tools is ignored."""
    return isinstance(status, str) and status.startswith("failed_to_")


class Metadata:
    """The parquet file beside a tar or a folder: img2dataset's metadata, a shard of its own, or an unrelated table.

    Attributes:
        is_table: Whether it has the images' bytes, and so is a shard itself.
        problem: Why it cannot be read; empty for an unrelated table.
    """

    def __init__(self, uri: str, columns: Columns):
        self.is_table, self.problem = False, ""
        self._expected: dict[str, tuple[str, bool]] = {}  # {key to compare: (key, whether the download failed)}
        self._by_number = False
        with ExitStack() as stack:
            try:
                file = stack.enter_context(stack.enter_context(SourceReader()).open_table(uri))
                schema = pq.read_schema(file)
                self.is_table = columns.image in schema.names
                if not self.is_table and {columns.key, "status"} <= set(schema.names):
                    self._read(pq.read_table(file, columns=[columns.key, "status"]), columns.key)
            except FileNotFoundError:
                return
            except DAMAGE as error:
                raise_if_of_store(error)
                self.problem = "metadata beside tar cannot be read"

    def _read(self, table: pa.Table, key: str) -> None:
        kind = table.schema.field(key).type
        self._by_number = not (pa.types.is_string(kind) or pa.types.is_large_string(kind))
        for value, status in zip(table[key].to_pylist(), table["status"].to_pylist(), strict=True):
            if (name := key_of(value)) and (status == "success" or has_failed(status)):
                self._expected[self._comparable(name)] = (name, has_failed(status))

    def _comparable(self, key: str) -> str:
        """Return a key without leading zeros if the metadata stores keys as numbers."""
        return key.lstrip("0") if self._by_number else key

    @property
    def is_of_downloads(self) -> bool:
        """Return whether it lists downloads, or cannot be read."""
        return not self.is_table and bool(self._expected or self.problem)

    def found(self, path: str) -> None:
        """Record that the tar has a sample; its path may have gained folders since the metadata was written."""
        for name in (path, path.rpartition("/")[2]):
            self._expected.pop(self._comparable(name), None)

    def missing(self) -> Iterator[tuple[str, bool]]:
        """Yield (key, whether its download failed) of the samples that were not found."""
        yield from self._expected.values()


def explain_unopened(error: Exception) -> str:
    """Return the reason why a shard cannot be opened, given one of DAMAGE. Raises the error if the store caused it."""
    if isinstance(error, BadFile):
        return str(error)
    raise_if_of_store(error)
    return NOT_READABLE


def raise_if_of_store(error: BaseException) -> None:
    """Raise an error again if the store caused it, not a damaged shard; pyarrow's own OSErrors have no errno."""
    if isinstance(error, storage.StorageError) or (isinstance(error, OSError) and error.errno is not None):
        raise error
