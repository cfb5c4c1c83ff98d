"""Read prompts from text, CSV, TSV, JSON, JSON lines and parquet files."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from asymflow.text_files import decode_text, parse_json, parse_json_lines, parse_table, split_lines
from pipelines.core import storage

Rows = Iterator[tuple[int, Any]]
"""(row or line number from 1, its content: a string, or an object with columns)"""


def read_prompt_file(uri: str, column: str) -> list[str]:
    """Read the prompts of a local or S3 file, in order, without surrounding whitespace.

    `.txt` (or no extension) has one prompt per line, and empty lines are skipped. `.csv`, `.tsv` and `.parquet` have a
    column of prompts. `.jsonl`, `.ndjson` and `.json` have strings, or objects with the column. The parquet files of a
    folder are read in the order of their names.

    Raises:
        ValueError: The file does not exist or has another format, the column is missing, or an entry is not a prompt.
    """
    suffix = PurePosixPath(uri).suffix.lower()
    if not suffix and (files := _parquet_files(uri)):
        return [prompt for file in files for prompt in read_prompt_file(file, column)]
    if suffix not in _READERS:
        raise ValueError(f"{uri} ends with {suffix!r}; allowed: {', '.join(filter(None, _READERS))}")
    rows = _READERS[suffix](uri, column)
    return [to_prompt(value_at(row, column, uri, number), uri, number) for number, row in rows]


def read_text(uri: str) -> str:
    """Read a whole local or S3 text file. Raises ValueError."""
    return decode_text(_read(uri), uri)


def value_at(row: Any, column: str, uri: str, number: int) -> Any:
    """Return a row's value of a column, or the row itself if it is a string. Raises ValueError without the column."""
    if isinstance(row, str):
        return row
    if not isinstance(row, Mapping) or column not in row:
        found = ", ".join(map(str, row)) if isinstance(row, Mapping) else type(row).__name__
        raise ValueError(f"{uri}: row {number} has no {column!r}; it has {found}")
    return row[column]


def to_prompt(value: Any, uri: str, number: int) -> str:
    """Return a prompt without surrounding whitespace. Raises ValueError if it is empty or not a string."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{uri}: row {number} has {value!r}; a prompt must be non-empty text")
    return value.strip()


def _parquet_files(folder: str) -> list[str]:
    """Return the sorted parquet files of a folder; none of what is not a folder."""
    if storage.is_local(folder) and not Path(storage.absolute(folder)).is_dir():
        return []
    return storage.list_files(folder, ".parquet")


def _read(uri: str) -> bytes:
    try:
        return storage.read_bytes(uri)
    except (FileNotFoundError, IsADirectoryError):
        raise ValueError(f"{uri}: no such file") from None


def _plain(uri: str, column: str) -> Rows:
    text = read_text(uri)
    lines = [(number, line) for number, line in enumerate(split_lines(text, uri), 1) if line.strip()]
    if lines and (_is_json(lines[0][1]) or _is_json(text)):
        raise ValueError(f"{uri} holds JSON, not one prompt per line; name it .json or .jsonl")
    return iter(lines)


def _is_json(text: str) -> bool:
    try:
        return text.lstrip()[:1] in "[{" and isinstance(parse_json(text, ""), dict | list)
    except ValueError:
        return False


def _json(uri: str, column: str) -> Rows:
    """Read a list, or one object per line, since JSON lines are sometimes named .json."""
    text = read_text(uri)
    try:
        found = parse_json(text, uri)
    except ValueError:
        if not _is_json(text.lstrip().partition("\n")[0]):
            raise
        return _json_lines(uri, column)
    if not isinstance(found, list):
        if isinstance(found, dict) and "\n" not in text.strip():
            return iter([(1, found)])  # a JSON lines file with a single line
        raise ValueError(f"{uri} holds a {type(found).__name__}; expected a list of strings or of objects")
    return iter(enumerate(found, 1))


def _json_lines(uri: str, column: str) -> Rows:
    return parse_json_lines(read_text(uri), uri)


def _commas(uri: str, column: str) -> Rows:
    return parse_table(read_text(uri), uri, [column])


def _tabs(uri: str, column: str) -> Rows:
    return parse_table(read_text(uri), uri, [column], "\t")


def _parquet(uri: str, column: str) -> Rows:
    try:
        file = pq.ParquetFile(pa.BufferReader(_read(uri)))
        if column not in file.schema_arrow.names:
            raise ValueError(f"{uri} has no column {column!r}; it has {', '.join(file.schema_arrow.names)}")
        return iter(enumerate(file.read([column]).to_pylist(), 1))
    except pa.ArrowException as error:
        raise ValueError(f"{uri} is not a parquet file: {error}") from None


_READERS: Mapping[str, Callable[[str, str], Rows]] = {
    "": _plain, ".txt": _plain, ".jsonl": _json_lines, ".ndjson": _json_lines, ".json": _json, ".csv": _commas,
    ".tsv": _tabs, ".parquet": _parquet,
}  # fmt: skip
