"""Read files that assign captions to images by their paths: metadata.jsonl, metadata.csv, and tables of paths."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from asymflow.text_files import decode_text, parse_json_lines, parse_table
from pipelines.core.config import ConfigError
from pipelines.data.curate.arrow_reader import open_arrow
from pipelines.data.curate.columns import find_columns, find_columns_of_schema, is_image_struct, is_text
from pipelines.data.curate.parquet_reader import DAMAGE, raise_if_of_store, values_of
from pipelines.data.curate.samples import Columns, key_of, text_of
from pipelines.data.curate.source_files import BadFile, SourceReader, path_of

METADATA_NAMES = ("metadata.jsonl", "metadata.csv")
LARGEST_METADATA = 1 << 30
_ROWS = 64  # per batch
_SCALARS = (str, int, float, bool)


@dataclass(frozen=True)
class MetadataRow:
    """A row of a metadata file."""

    number: int
    """From 1"""
    image: str
    """Path from the file's folder; empty if the row has none"""
    caption: str | None
    """None if the file has no captions"""
    record: dict[str, Any]
    """Values of the other columns that the settings name"""
    global_key: str = ""
    references: tuple[str, ...] = ()
    """Paths of its reference images, from the file's folder; empty where a cell holds no path"""


def read_metadata(address: str, columns: Columns) -> Iterator[MetadataRow]:
    """Yield the rows of a metadata file.

    Args:
        address: A .jsonl, .csv, .parquet or .arrow file.
        columns: Names of its columns; see `find_columns`.

    Raises:
        ConfigError: It cannot be read, or has no column of images.
    """
    where = path_of(address)
    if address.lower().endswith((".parquet", ".arrow")):
        yield from _read_table(address, columns)
        return
    try:
        with SourceReader() as reader:
            text = decode_text(reader.read(address, LARGEST_METADATA), where)
        is_csv = address.lower().endswith(".csv")
        rows = parse_table(text, where, []) if is_csv else parse_json_lines(text, where)
        first = next(rows, None)
        if first is None:
            return
        for number, row in chain([first], rows):
            if not isinstance(row, dict):
                raise ValueError(f"{where}: line {number} is a {type(row).__name__}; expected a JSON object")
            if row is first[1]:
                found = find_columns(columns, where, list(row), [n for n, v in row.items() if _is_words(v)])
            yield _to_row(number, row, found)
    except BadFile as error:
        raise ConfigError(f"{where}: {error}") from None
    except ValueError as error:
        raise ConfigError(str(error)) from None


@dataclass(frozen=True)
class TableKind:
    """What a table holds, by its columns and its first row."""

    has_paths: bool
    """Whether it holds the paths of its images, not their bytes"""
    has_captions: bool
    has_scores: bool
    """Whether it has any of the columns of scores"""
    has_references: bool
    """Whether it has any of the columns of reference images"""


def look_at_table(address: str, columns: Columns) -> TableKind | None:
    """Return what a table holds; None if it is damaged.

    Raises:
        ConfigError: It has no column of images, or lacks another column that the settings name.
    """
    try:
        with _open_table(address) as (schema, batches):
            found = find_columns_of_schema(columns, path_of(address), schema)
            kind = schema.field(found.image).type
            has_paths = is_text(kind)
            if is_image_struct(kind):
                first = next((row[found.image] for batch in batches([found.image]) for row in _rows(batch[:1])), None)
                has_paths = first is not None and first["bytes"] is None and bool(first["path"])
            scores = {columns.aesthetic, columns.punsafe, columns.pwatermark, columns.similarity}
            names = set(schema.names)
            return TableKind(
                has_paths, bool(found.caption), not scores.isdisjoint(names), not names.isdisjoint(columns.references)
            )
    except BadFile:
        return None
    except DAMAGE as error:
        raise_if_of_store(error)
        return None


@contextmanager
def _open_table(address: str) -> Iterator[tuple[pa.Schema, Callable[[list[str]], Iterator[pa.RecordBatch]]]]:
    """Open a table: its schema, and a function that yields its record batches with the given columns."""
    with ExitStack() as stack:
        if address.lower().endswith(".arrow"):
            source = stack.enter_context(open_arrow(address))
            yield source.schema, lambda names: (_checked(batch).select(names) for batch in source)
        else:
            file = pq.ParquetFile(stack.enter_context(stack.enter_context(SourceReader()).open_table(address)))
            yield file.schema_arrow, lambda names: file.iter_batches(_ROWS, columns=names)


def _checked(batch: pa.RecordBatch) -> pa.RecordBatch:
    batch.validate(full=True)  # else damaged offsets lead outside of the file
    return batch


def _rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """Yield the rows one by one, since they may hold images."""
    for row in range(batch.num_rows):
        yield from batch.slice(row, 1).to_pylist()


def _read_table(address: str, columns: Columns) -> Iterator[MetadataRow]:
    where = path_of(address)
    try:
        with _open_table(address) as (schema, batches):
            found = find_columns_of_schema(columns, where, schema)
            wanted = [name for name in found.names if name in schema.names]
            rows = (row for batch in batches(wanted) for row in _rows(batch))
            for number, row in enumerate(rows, 1):
                yield _to_row(number, row, found)
    except BadFile as error:
        raise ConfigError(f"{where}: {error}") from None
    except DAMAGE as error:
        raise_if_of_store(error)
        raise ConfigError(f"{where}: cannot be read: {' '.join(str(error).split())}") from None


def _is_words(value: Any) -> bool:
    """Return whether a value is text, and not a number written as text, as all numbers in CSV are."""
    try:
        float(value)
    except (TypeError, ValueError):
        return isinstance(value, str)
    return False


def _to_row(number: int, row: dict[str, Any], columns: Columns) -> MetadataRow:
    others = {name: row.get(name) for name in columns.names if name not in (columns.image, *columns.references)}
    record = {name: value for name, value in others.items() if isinstance(value, _SCALARS)}
    caption = text_of(record.pop(columns.caption, "")) if columns.caption else None
    references = tuple(_path_of(one) for name in columns.references for one in values_of(row.get(name)))
    path, global_key = _path_of(row.get(columns.image)), key_of(row.get(columns.global_key))
    return MetadataRow(number, path, caption, record, global_key, references)


def _path_of(image: Any) -> str:
    return text_of(image.get("path") if isinstance(image, dict) else image)
