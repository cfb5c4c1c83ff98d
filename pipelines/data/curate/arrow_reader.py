"""Read samples from Arrow files, in which Hugging Face `datasets` saves a data set (`save_to_disk`)."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pyarrow as pa

from pipelines.core import storage
from pipelines.data.curate.columns import MissingColumn, find_columns_of_schema
from pipelines.data.curate.parquet_reader import DAMAGE, DAMAGED, explain_unopened, raise_if_of_store, sample_of_row
from pipelines.data.curate.samples import Columns, Sample
from pipelines.data.curate.source_files import SourceReader, path_of, split_address

_FILE = b"ARROW1"
_END = b"\xff\xff\xff\xff\0\0\0\0"
"""Last bytes of a stream; one that is cut off between two batches lacks only these"""


class Batches:
    """Record batches of an Arrow file or stream.

    Attributes:
        schema: Its schema.
        size: Bytes of the file.
    """

    def __init__(self, file: Any):
        start = bytes(file.read(len(_FILE)))
        self.size = file.seek(0, 2)
        file.seek(max(0, self.size - len(_END)))
        self._is_stream = start != _FILE
        self._has_end = bytes(file.read(len(_END))) == _END
        file.seek(0)
        self._reader: Any = pa.ipc.open_stream(file) if self._is_stream else pa.ipc.open_file(file)
        self.schema: pa.Schema = self._reader.schema

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        """Yield the batches. Raises one of DAMAGE where the file is damaged or cut off."""
        if not self._is_stream:
            yield from (self._reader.get_batch(number) for number in range(self._reader.num_record_batches))
            return
        yield from self._reader
        if not self._has_end:
            raise pa.ArrowInvalid("cut off")


@contextmanager
def open_arrow(address: str) -> Iterator[Batches]:
    """Open an Arrow file; a local one is mapped into memory, so that only the rows in use are read.

    Raises:
        BadFile: It is a damaged or too large member of a zip.
        ArrowException: It is not an Arrow file.
    """
    with ExitStack() as stack:
        if storage.is_local(address) and not split_address(address)[1]:
            yield Batches(stack.enter_context(pa.memory_map(address)))
        else:
            yield Batches(stack.enter_context(stack.enter_context(SourceReader()).open_table(address)))


def read_arrow(shard: str, columns: Columns) -> Iterator[Sample]:
    """Yield a sample for each row of an Arrow file; damage costs the rest of the file, and is one sample."""
    with ExitStack() as stack:
        try:
            batches = stack.enter_context(open_arrow(shard))
        except DAMAGE as error:
            yield Sample("", problem=explain_unopened(error))
            return
        try:
            found, reason = find_columns_of_schema(columns, path_of(shard), batches.schema), ""
        except MissingColumn as error:
            found, reason = columns, error.reason
        yield from _rows_of(batches, found, reason)


def _rows_of(batches: Batches, columns: Columns, reason: str) -> Iterator[Sample]:
    """Yield the samples of the rows, all with the problem `reason` if there is one."""
    wanted = [name for name in columns.names if name in batches.schema.names]
    first, rest = 0, iter(batches)
    while True:
        try:
            batch = next(rest, None)
        except DAMAGE as error:
            raise_if_of_store(error)
            yield Sample("", problem=DAMAGED)
            return
        if batch is None:
            return
        yield from _rows_of_batch(batch, first, wanted, columns, reason, batches.size)
        first += batch.num_rows


def _rows_of_batch(
    batch: pa.RecordBatch, first: int, wanted: list[str], columns: Columns, reason: str, size: int
) -> Iterator[Sample]:
    try:
        batch.validate(full=True)  # else damaged offsets lead outside of the file
    except DAMAGE:
        reason = DAMAGED
    if reason:
        yield from (Sample(str(first + row), problem=reason) for row in range(min(batch.num_rows, size)))
        return
    for row in range(batch.num_rows):
        (values,) = batch.select(wanted).slice(row, 1).to_pylist()
        yield sample_of_row(values, str(first + row), columns)
