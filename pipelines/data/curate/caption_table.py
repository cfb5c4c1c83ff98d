"""Join images with captions that are published as tables, by a key that both have, such as the image's hash."""

import bisect
import gzip
import io
import zlib
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj
import pyarrow.parquet as pq

from pipelines.core import storage
from pipelines.core.config import ConfigError
from pipelines.data.curate.config import CaptionTables
from pipelines.data.curate.filters import Rejected
from pipelines.data.curate.samples import Columns, Sample, key_of

_ENDINGS = (".parquet", ".jsonl", ".jsonl.gz")
_LONGEST_LINE = 16 << 20


@dataclass(frozen=True)
class CaptionTable:
    """Captions by key. Its Arrow buffers are shared by all workers of a node."""

    keys: pa.LargeStringArray
    """Sorted keys (N,)"""
    rows: pa.UInt64Array
    """Row of each key's caption (N,)"""
    captions: pa.ChunkedArray
    """Captions in the order of the tables"""

    def caption_of(self, sample: Sample, columns: Columns) -> str:
        """Return the caption of a sample. Raises Rejected if it has no key, or its key no caption."""
        key = key_of(sample.record.get(columns.caption_key))
        if not key:
            raise Rejected("no caption key")
        place = bisect.bisect_right(range(len(self.keys)), key, key=lambda i: self.keys[i].as_py()) - 1
        if place < 0 or self.keys[place].as_py() != key:
            raise Rejected("no caption of its key")
        caption = self.captions[self.rows[place].as_py()].as_py()
        if not caption or caption.isspace():
            raise Rejected("empty caption")
        return caption


def check_caption_tables(tables: CaptionTables) -> None:
    """Raise ConfigError unless the first table of the captions and of the keys can be read and has its column."""
    for setting, files, column in _parts(tables):
        _read_column(setting, files[0], column, only_start=True)


def load_caption_table(tables: CaptionTables) -> CaptionTable:
    """Read the captions and their keys.

    Raises:
        ConfigError: A table cannot be read or lacks its column, or there are not as many captions as keys.
    """
    captions, keys = (
        pa.chunked_array(
            [chunk for file in files for chunk in _read_column(setting, file, column).chunks], type=pa.large_string()
        )
        for setting, files, column in _parts(tables)
    )
    if len(captions) != len(keys):
        raise ConfigError(
            f"captions.keys={tables.keys!r}: {len(keys)} rows, but captions.source={tables.source!r} has "
            f"{len(captions)}; they must have the same rows in the same order"
        )
    rows = pc.sort_indices(keys)[: len(keys) - keys.null_count]  # the sort is stable and puts nulls last
    return CaptionTable(keys.take(rows).combine_chunks(), rows, captions)


def _parts(tables: CaptionTables) -> list[tuple[str, list[str], str]]:
    """Return (setting, tables, column) of the captions and of the keys. Raises ConfigError if there are no tables."""
    keys = _list_tables(tables.keys)
    captions = [file for file in _list_tables(tables.source) if file not in keys]
    for setting, files in {"source": captions, **({"keys": keys} if tables.keys else {})}.items():
        if not files:
            uri = getattr(tables, setting)
            raise ConfigError(f"captions.{setting}={uri!r}: no tables there; allowed: {', '.join(_ENDINGS)}")
    by_key = ("captions.keys", keys) if keys else ("captions.source", captions)
    return [("captions.source", captions, tables.caption), (*by_key, tables.key)]


def _list_tables(uri: str) -> list[str]:
    """Return the table at a URI, or the tables of a folder."""
    if not uri:
        return []
    if uri.endswith(_ENDINGS):
        return [storage.absolute(uri)]
    return [file for file in storage.list_files(uri) if file.endswith(_ENDINGS)]


def _read_column(setting: str, file: str, column: str, only_start: bool = False) -> pa.ChunkedArray:
    """Return a column of a table as text.

    Args:
        setting: Setting that names the table, for messages.
        file: URI of the table.
        column: Name of the column.
        only_start: Whether to read only the beginning, as a check.

    Raises:
        ConfigError: The table does not exist, cannot be read, or has no such column.
    """
    try:
        with storage.open_file(file) as stream:
            read = _read_parquet if file.endswith(".parquet") else _read_json_lines
            return read(stream, column, only_start).cast(pa.large_string())
    except KeyError as error:
        raise ConfigError(f"{setting}: {file} has no column {column!r}{error.args[0]}") from None
    except (pa.ArrowException, FileNotFoundError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ConfigError(f"{setting}: {file} cannot be read: {' '.join(str(error).split())}") from None


def _read_parquet(stream: io.BufferedReader, column: str, only_start: bool) -> pa.ChunkedArray:
    table = pq.ParquetFile(stream)
    if column not in table.schema_arrow.names:
        raise KeyError(f"; it has {', '.join(table.schema_arrow.names)}")
    return (table.read_row_group(0, [column]) if only_start and table.num_row_groups else table.read([column]))[column]


def _read_json_lines(stream: io.BufferedReader, column: str, only_start: bool) -> pa.ChunkedArray:
    plain = gzip.open(stream) if stream.peek(2)[:2] == b"\x1f\x8b" else stream
    schema = pa.schema({column: pa.large_string()})  # else a column of dates would not be text
    reader = pj.open_json(
        plain,
        read_options=pj.ReadOptions(block_size=_LONGEST_LINE),
        parse_options=pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
    )
    found = pa.Table.from_batches([reader.read_next_batch()]) if only_start else reader.read_all()
    if found[column].null_count == len(found):
        raise KeyError("")
    return found[column]
