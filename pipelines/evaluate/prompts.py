"""Prompts of the suites, and the pictures that are asked for each: read from the benchmarks' own files."""

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from pathlib import PurePosixPath
from typing import Any

import pyarrow.parquet as pq

from asymflow.metrics import dpg
from pipelines.core import storage
from pipelines.core.artifacts import Artifact
from pipelines.core.config import ConfigError
from pipelines.data.datasets import read_rows

GENEVAL_TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
HPSV3_CATEGORIES = 12


@dataclass(frozen=True)
class Prompt:
    id: str
    text: str
    category: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    """What a scorer needs to know besides the text"""

    @cached_property
    def digest(self) -> str:
        content = json.dumps([self.text, self.data], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()[:10]


@dataclass(frozen=True)
class Shot:
    """One picture that is asked for; its index counts prompts x repeats, and is the seed of its noise."""

    index: int
    prompt: Prompt

    @property
    def key(self) -> str:
        """Of the picture and its scores, which stay those of this prompt wherever it stands in a file later on."""
        return f"{self.index:06}-{self.prompt.digest}"


def shots_of(prompts: list[Prompt], repeats: int) -> list[Shot]:
    return [Shot(i * repeats + r, prompt) for i, prompt in enumerate(prompts) for r in range(repeats)]


Reader = Callable[[str, str], list[Prompt]]
"""(URI, name of the column where there are some) -> prompts. Raises ConfigError for a file that is unsound"""


def read_captions(uri: str, column: str) -> list[Prompt]:
    """A text file with one a line, a parquet file, or JSON lines; the last two with a column of them."""
    suffix = PurePosixPath(uri).suffix
    if suffix == ".parquet":
        with _open(uri) as file:
            table = pq.read_table(file)
        if column not in table.column_names:
            raise ConfigError(f"prompts.column={column!r}: {uri} has {', '.join(table.column_names)}")
        texts = table[column].to_pylist()
    elif suffix in (".jsonl", ".ndjson"):
        texts = [_get(row, column, uri, line) for line, row in _json_lines(uri)]
    else:
        texts = [line for line in _text(uri).splitlines() if line.strip()]
    return [Prompt(f"{i:05}", _string(text, uri, i + 1)) for i, text in enumerate(texts)]


def read_hpsv3(uri: str, column: str) -> list[Prompt]:
    """The folder of `benchmark_<Category>.json`, twelve lists of {caption, category, image_file}."""
    files = [f for f in storage.list_files(uri, ".json") if PurePosixPath(f).name.startswith("benchmark_")]
    if len(files) != HPSV3_CATEGORIES:
        raise ConfigError(
            f"prompts.file={uri!r}: has {len(files)} files benchmark_<Category>.json, needed are {HPSV3_CATEGORIES} "
            "(the folder `benchmark` of MizzenAI/HPDv3)"
        )
    prompts = []
    for file in files:
        category = PurePosixPath(file).stem.removeprefix("benchmark_")
        for i, row in enumerate(json.loads(_text(file))):
            caption = _string(_get(row, "caption", file, i + 1), file, i + 1)
            prompts.append(Prompt(f"{category}-{i:04}", caption, category))
    return prompts


def read_geneval(uri: str, column: str) -> list[Prompt]:
    """`metadata.jsonl`, each line with tag, include, exclude (or not) and prompt."""
    prompts = []
    for line, row in _json_lines(uri):
        tag = _get(row, "tag", uri, line)
        if tag not in GENEVAL_TAGS:
            raise ConfigError(f"{uri}: line {line} has the tag {tag!r}; known: {', '.join(GENEVAL_TAGS)}")
        data = {"tag": tag, "include": _get(row, "include", uri, line), "exclude": row.get("exclude", [])}
        prompts.append(Prompt(f"{line - 1:05}", _string(_get(row, "prompt", uri, line), uri, line), tag, data))
    return prompts


def read_dpg(uri: str, column: str) -> list[Prompt]:
    """The CSV of questions, several rows a prompt."""
    try:
        items = storage.read_file(uri, dpg.read_questions)
    except FileNotFoundError:
        raise ConfigError(f"prompts.file={uri!r}: no such file") from None
    except ValueError as error:
        raise ConfigError(f"prompts.file={uri!r}: {error}") from None
    prompts = []
    for name, item in items.items():
        data: dict[str, dict] = {"parents": item.parents, "questions": item.questions, "categories": item.categories}
        as_json = {what: {str(question): value for question, value in of.items()} for what, of in data.items()}
        prompts.append(Prompt(name, item.text, data=as_json))
    return prompts


def read_held_out(curated: Artifact, column: str = "caption") -> Iterator[tuple[Prompt, bytes]]:
    """Captions (or labels) of held-out pictures, and the encoded pictures."""
    numbers = count()
    for file in curated.files("held_out", ".parquet"):
        for rows in read_rows(file, [column, "image"]):
            for text, image in zip(rows[column], rows["image"], strict=True):
                yield Prompt(f"{next(numbers):05}", str(text)), image


def read_labels(uri: str, column: str) -> list[Prompt]:
    """Each of the thousand ImageNet classes; there is nothing to be read."""
    return [Prompt(f"{label:03}", str(label), str(label), {"label": label}) for label in range(1000)]


def _open(uri: str) -> io.BufferedReader:
    try:
        return storage.open_file(uri)
    except (FileNotFoundError, IsADirectoryError):
        raise ConfigError(f"prompts.file={uri!r}: no such file") from None


def _text(uri: str) -> str:
    with _open(uri) as file:
        try:
            return file.read().decode("utf-8")
        except UnicodeDecodeError:
            raise ConfigError(f"prompts.file={uri!r}: is no text in UTF-8") from None


def _json_lines(uri: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(_text(uri).splitlines(), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError as error:
                raise ConfigError(f"{uri}: line {number} is no JSON: {error}") from None


def _get(row: Any, name: str, uri: str, line: int) -> Any:
    if not isinstance(row, Mapping) or name not in row:
        has = ", ".join(row) if isinstance(row, Mapping) else type(row).__name__
        raise ConfigError(f"{uri}: row {line} has no {name!r}; it has {has}")
    return row[name]


def _string(value: Any, uri: str, line: int) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{uri}: row {line} holds no prompt but {value!r}")
    return value.strip()
