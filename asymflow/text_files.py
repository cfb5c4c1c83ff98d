"""Text files from outside: UTF-8 with or without a byte order mark, with lines that end with a line feed.

`str.splitlines` also splits at form feeds, U+0085 and U+2028, which occur inside prompts and strings of JSON.
"""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


def decode_text(data: bytes, where: str) -> str:
    """Decode a whole file, without its byte order mark.

    Args:
        data: Content of the file.
        where: Name of the file, for errors.

    Returns:
        The text.

    Raises:
        ValueError: If the bytes are not UTF-8, or contain a null, as UTF-16 and binary files do.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not UTF-8 text: byte {error.start} is invalid; save it as UTF-8") from None
    if "\0" in text:
        raise ValueError(f"{where} is not UTF-8 text: it contains null bytes; save it as UTF-8")
    return text


def split_lines(text: str, where: str) -> list[str]:
    """Split a text at line feeds only; a carriage return before one belongs to the line's end.

    Args:
        text: The text.
        where: Name of the file, for errors.

    Returns:
        The lines, without their ends.

    Raises:
        ValueError: If a line contains another carriage return, so that it may be several lines.
    """
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    for number, line in enumerate(lines, 1):
        if "\r" in line:
            raise ValueError(f"{where}: line {number} contains a carriage return; save the file with line feeds")
    return lines[:-1] if lines[-1] == "" else lines


def parse_json(text: str, where: str) -> Any:
    """Parse one JSON value.

    Args:
        text: The text.
        where: Name of the file, for errors.

    Returns:
        The value.

    Raises:
        ValueError: For other text, or brackets nested too deep.
    """
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where} is not JSON: {error}") from None
    except RecursionError:
        raise ValueError(f"{where} is nested too deep") from None


def parse_json_lines(text: str, where: str) -> Iterator[tuple[int, Any]]:
    """Parse JSON Lines; empty lines are skipped.

    Args:
        text: The text.
        where: Name of the file, for errors.

    Yields:
        Line number from 1, and value.

    Raises:
        ValueError: If a line is not JSON.
    """
    for number, line in enumerate(split_lines(text, where), 1):
        if line.strip():
            yield number, parse_json(line, f"{where}: line {number}")


def parse_table(
    text: str, where: str, columns: Sequence[str], delimiter: str = ","
) -> Iterator[tuple[int, dict[str, str]]]:
    """Parse CSV whose first line names the columns; quoted values may contain line ends.

    Args:
        text: The text.
        where: Name of the file, for errors.
        columns: Required columns; others are allowed.
        delimiter: Character between values.

    Yields:
        Line number from 1, and values by column.

    Raises:
        ValueError: If a column is missing or named twice, a row has another length, or quotes are broken.
    """
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = next(rows, [])
        if missing := [name for name in columns if name not in header]:
            has = f"its first line has {', '.join(header)}" if header else "it is empty"
            raise ValueError(f"{where} has no column {', '.join(missing)}; {has}")
        if twice := [name for name in columns if header.count(name) > 1]:
            raise ValueError(f"{where} has the column {twice[0]} twice")
        for row in rows:
            if not row:
                continue
            if len(row) != len(header):
                raise ValueError(f"{where} line {rows.line_num}: the row has {len(row)} columns, not {len(header)}")
            yield rows.line_num, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise ValueError(f"{where} line {rows.line_num}: this is not CSV: {error}") from None


def read_text(path: str | Path) -> str:
    """Read a local text file.

    Args:
        path: The file.

    Returns:
        The text.

    Raises:
        ValueError: If it is not UTF-8 text.
        OSError: If it cannot be read.
    """
    return decode_text(Path(path).read_bytes(), str(path))


def read_json_object(path: str | Path) -> dict[str, Any]:
    """Read a local JSON file that contains an object.

    Args:
        path: The file.

    Returns:
        The object.

    Raises:
        ValueError: If it is not UTF-8 text, not JSON, or not an object.
        OSError: If it cannot be read.
    """
    found = parse_json(read_text(path), str(path))
    if not isinstance(found, dict):
        raise ValueError(f"{path} is a {type(found).__name__}; expected a JSON object")
    return found
