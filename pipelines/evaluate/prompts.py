"""Prompts of the suites from the benchmarks' own files, and the images per prompt."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from pathlib import PurePosixPath
from typing import Any

from asymflow.metrics import dpg
from asymflow.text_files import parse_json_lines
from pipelines.core import storage
from pipelines.core.artifacts import Artifact
from pipelines.core.config import ConfigError
from pipelines.data.datasets import find_test_split, has_references, read_rows
from pipelines.data.prompt_files import read_prompt_file, read_text, to_prompt, value_at

GENEVAL_TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
HPSV3_CATEGORIES = 12


@dataclass(frozen=True)
class Prompt:
    """A prompt of a suite."""

    id: str
    text: str
    category: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    """Additional data for a scorer"""

    @cached_property
    def digest(self) -> str:
        """Return a hash of the content."""
        content = json.dumps([self.text, self.data], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()[:10]


@dataclass(frozen=True)
class Generation:
    """One image to sample for a prompt; its index counts prompts x repeats, and is the seed of its noise."""

    index: int
    prompt: Prompt

    @property
    def key(self) -> str:
        """Return the key of the image and its scores, which holds the prompt's digest."""
        return f"{self.index:06}-{self.prompt.digest}"


def list_generations(prompts: list[Prompt], repeats: int) -> list[Generation]:
    """Return `repeats` generations per prompt."""
    return [Generation(i * repeats + r, prompt) for i, prompt in enumerate(prompts) for r in range(repeats)]


Reader = Callable[[str, str], list[Prompt]]
"""Reads prompts from (URI, name of the column, if any). Raises ConfigError for a malformed file"""


def read_captions(uri: str, column: str) -> list[Prompt]:
    """Read a file of prompts in any format of `pipelines.data.prompt_files`."""
    with as_config_error(uri):
        return [Prompt(f"{i:05}", text) for i, text in enumerate(read_prompt_file(uri, column))]


def read_hpsv3(uri: str, column: str) -> list[Prompt]:
    """Read a folder of `benchmark_<Category>.json`, twelve lists of {caption, category, image_file}."""
    files = [f for f in storage.list_files(uri, ".json") if PurePosixPath(f).name.startswith("benchmark_")]
    if len(files) != HPSV3_CATEGORIES:
        raise ConfigError(
            f"prompts.file={uri!r}: has {len(files)} files benchmark_<Category>.json, not {HPSV3_CATEGORIES} "
            "(the folder `benchmark` of MizzenAI/HPDv3)"
        )
    prompts = []
    with as_config_error(uri):
        for file in files:
            category = PurePosixPath(file).stem.removeprefix("benchmark_")
            for i, caption in enumerate(read_prompt_file(file, "caption")):
                prompts.append(Prompt(f"{category}-{i:04}", caption, category))
    return prompts


def read_geneval(uri: str, column: str) -> list[Prompt]:
    """Read `metadata.jsonl`, each line with tag, include, prompt and optionally exclude."""
    prompts = []
    with as_config_error(uri):
        for line, row in parse_json_lines(read_text(uri), uri):
            tag = value_at(row, "tag", uri, line)
            if tag not in GENEVAL_TAGS:
                raise ValueError(f"{uri}: line {line} has the tag {tag!r}; known: {', '.join(GENEVAL_TAGS)}")
            data = {"tag": tag, "include": value_at(row, "include", uri, line), "exclude": row.get("exclude", [])}
            text = to_prompt(value_at(row, "prompt", uri, line), uri, line)
            prompts.append(Prompt(f"{line - 1:05}", text, tag, data))
    return prompts


def read_dpg(uri: str, column: str) -> list[Prompt]:
    """Read the CSV of questions, several rows per prompt."""
    with as_config_error(uri):
        items = dpg.parse_questions(read_text(uri), uri)
    prompts = []
    for name, item in items.items():
        data: dict[str, dict] = {"parents": item.parents, "questions": item.questions, "categories": item.categories}
        as_json = {what: {str(question): value for question, value in of.items()} for what, of in data.items()}
        prompts.append(Prompt(name, item.text, data=as_json))
    return prompts


def read_held_out(curated: Artifact, column: str = "caption") -> Iterator[tuple[Prompt, bytes]]:
    """Yield captions (or labels) of held-out images, and the encoded images. Edits are left out.

    A distance needs two images: of a data set with fewer held-out ones, they are of the training images.
    """
    numbers = count()
    files = curated.files(find_test_split(curated, at_least=2), ".parquet")
    for file in (file for file in files if not has_references(file)):
        for rows in read_rows(file, [column, "image"]):
            for text, image in zip(rows[column], rows["image"], strict=True):
                yield Prompt(f"{next(numbers):05}", str(text)), image


def read_labels(uri: str, column: str) -> list[Prompt]:
    """Return the thousand ImageNet classes as prompts; no file is read."""
    return [Prompt(f"{label:03}", str(label), str(label), {"label": label}) for label in range(1000)]


@contextmanager
def as_config_error(uri: str) -> Iterator[None]:
    """Raise a ValueError of reading the prompts as a ConfigError."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(f"prompts.file={uri!r}: {error}") from None
