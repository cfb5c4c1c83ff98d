"""Match the images of a folder made elsewhere with prompts, by a mapping file or by unambiguous names.

Layouts: a file MAPPING; this project's own names; GenEval's `00003/samples/0001.png`; names of items, as DPG-Bench's
`ITEM.png` (a grid of four, for four images per prompt) or `ITEM_1.png`; a number per image, or one per prompt and one
per repeat. Numbers are compared as numbers: 2 comes before 10.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from asymflow.text_files import decode_text, parse_json_lines, parse_table
from pipelines.core import storage
from pipelines.core.config import ConfigError
from pipelines.evaluate.prompts import Generation, Prompt

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
MAPPING = ("images.csv", "images.jsonl")
GRID = 4
"""Images per DPG-Bench file, two rows of two"""
_GENEVAL = re.compile(r"(\d+)/samples/(\d+)")
_REPEATED = re.compile(r"(.+)[-_/ ](\d+)")
Positions = dict[str, tuple[int, int]]
"""{file name: (index of its prompt, repeat)}"""


@dataclass(frozen=True)
class Match:
    """Files by prompt and repeat."""

    files: Mapping[tuple[int, int], str]
    """{(index of the prompt, repeat): URI}; of a grid, {(index of the prompt, 0): URI}"""
    grids: bool = False
    """Whether each file holds GRID images"""


def image_files(uri: str) -> list[str]:
    """Return the URIs of the images below a folder, sorted."""
    return [file for file in storage.list_files(uri) if PurePosixPath(file).suffix.lower() in ENDINGS]


def match_images(uri: str, generations: Sequence[Generation], repeats: int) -> Match:
    """Match the images below a folder with the generations of a suite.

    Raises:
        ConfigError: the number of images differs, names are ambiguous, or a layout's own metadata contradicts the
            match.
    """
    prompts = [generation.prompt for generation in generations[::repeats]]
    start = len(storage.absolute(uri)) + 1
    files = {file[start:]: file for file in image_files(uri) if not _is_overview(file[start:])}
    mapping = [name for name in MAPPING if storage.exists(storage.join(uri, name))]
    if mapping:
        return _matched(uri, files, _by_mapping(storage.join(uri, mapping[0]), prompts, repeats), len(generations))
    names = {str(PurePosixPath(name).with_suffix("")): name for name in files}
    if len(names) != len(files):
        raise ConfigError(f"pictures={uri!r}: two images differ only in their suffix; keep one of them")
    if len(files) == len(prompts) and repeats == GRID and (positions := _by_item(names, prompts, 1)):
        return Match({position: files[names[name]] for name, position in positions.items()}, grids=True)
    if len(files) != len(generations):
        raise ConfigError(f"pictures={uri!r}: there are {len(files)} images, the suite needs {len(generations)}")
    matchers: list[Callable[[], Positions | None]] = [
        lambda: _by_key(names, generations, repeats),
        lambda: _by_geneval(uri, names, prompts, repeats),
        lambda: _by_item(names, prompts, repeats),
        lambda: _by_numbers(list(names), len(prompts), repeats),
    ]
    for matcher in matchers:
        if positions := matcher():
            return _matched(
                uri, files, {names[name]: position for name, position in positions.items()}, len(generations)
            )
    raise ConfigError(
        f"pictures={uri!r}: names such as {min(names)!r} do not identify the prompts; number the images "
        f"0 to {len(generations) - 1}, name them PROMPT-REPEAT, or add {MAPPING[0]} with the columns file and index"
    )


def _matched(uri: str, files: Mapping[str, str], positions: Positions, count: int) -> Match:
    unknown = sorted(positions.keys() - files.keys())
    if unknown:
        raise ConfigError(f"pictures={uri!r}: {unknown[0]!r} is in the mapping, but not in the folder")
    found = {position: files[name] for name, position in positions.items()}
    if not len(found) == len(positions) == count:
        raise ConfigError(f"pictures={uri!r}: {len(found)} of {count} images are matched with a prompt and repeat")
    return Match(found)


def _is_overview(name: str) -> bool:
    """Return whether a file is the grid.png that GenEval writes beside each folder of samples."""
    return re.fullmatch(r"\d+/grid\.png", name) is not None


def _by_mapping(file: str, prompts: Sequence[Prompt], repeats: int) -> Positions:
    """Return the positions from rows {file, index}, {file, id, repeat} or {file, prompt, repeat}."""
    positions: Positions = {}
    try:
        for line, row in _rows(file):
            where = f"{file} line {line}"
            if not isinstance(row, Mapping) or not isinstance(row.get("file"), str):
                raise ValueError(f"{where}: has no file")
            if row["file"] in positions:
                raise ValueError(f"{where}: {row['file']!r} is given twice")
            positions[row["file"]] = _read_position(row, where, prompts, repeats)
    except ValueError as error:
        raise ConfigError(f"pictures: {error}") from None
    return positions


def _rows(file: str) -> Iterator[tuple[int, Any]]:
    text = decode_text(storage.read_bytes(file), file)
    return parse_table(text, file, ["file"]) if file.endswith(".csv") else parse_json_lines(text, file)


def _read_position(row: Mapping[str, Any], where: str, prompts: Sequence[Prompt], repeats: int) -> tuple[int, int]:
    if "index" in row:
        index = _number(row["index"], where, "index", len(prompts) * repeats)
        return index // repeats, index % repeats
    kind = next((name for name in ("id", "prompt") if name in row), None)
    if kind is None:
        raise ValueError(f"{where}: has neither index, id nor prompt")
    matches = [position for position, p in enumerate(prompts) if row[kind] == (p.id if kind == "id" else p.text)]
    if len(matches) != 1:
        raise ValueError(f"{where}: {kind}={row[kind]!r} matches {len(matches)} prompts")
    return matches[0], _number(row.get("repeat", 0 if repeats == 1 else None), where, "repeat", repeats)


def _number(value: Any, where: str, name: str, count: int) -> int:
    if not str(value).isdecimal() or int(value) >= count:
        raise ValueError(f"{where}: {name}={value!r} is not a number from 0 to {count - 1}")
    return int(value)


def _by_key(names: Mapping[str, str], generations: Sequence[Generation], repeats: int) -> Positions | None:
    """Return the positions from this project's own names, which hold the prompt's digest."""
    known = {generation.key: (generation.index // repeats, generation.index % repeats) for generation in generations}
    found = {name: known.get(name.rpartition("/")[2]) for name in names}
    return _all(found)


def _by_geneval(uri: str, names: Mapping[str, str], prompts: Sequence[Prompt], repeats: int) -> Positions | None:
    if not all(_GENEVAL.fullmatch(name) for name in names):
        return None
    for folder in sorted({name.partition("/")[0] for name in names}):
        record = storage.join(uri, folder, "metadata.jsonl")
        if int(folder) < len(prompts) and storage.exists(record):
            try:
                records = [row for _, row in _rows(record)]
            except ValueError as error:
                raise ConfigError(f"pictures: {error}") from None
            text = records[0].get("prompt") if len(records) == 1 and isinstance(records[0], Mapping) else None
            if text != prompts[int(folder)].text:
                raise ConfigError(
                    f"pictures={uri!r}: {folder}/metadata.jsonl has {text!r}, but prompt {int(folder)} of the suite "
                    f"is {prompts[int(folder)].text!r}"
                )
    pairs = {name: tuple(map(int, name.split("/samples/"))) for name in names}
    return _pairs(pairs, len(prompts), repeats)


def _by_item(names: Mapping[str, str], prompts: Sequence[Prompt], repeats: int) -> Positions | None:
    """Return the positions from items' names, followed by a repeat if there are several images per prompt."""
    position_of = {prompt.id: position for position, prompt in enumerate(prompts)}
    if all(name.isdecimal() for name in position_of):
        return None  # IDs are the prompts' numbers
    found: dict[str, tuple[int, int] | None] = {}
    for name in names:
        item, repeat = name, 0
        if repeats > 1:
            parts = _REPEATED.fullmatch(name)
            if not parts:
                return None
            item, repeat = parts[1], int(parts[2])
        known = [
            position_of[form] for form in (item, item.replace("/", "-"), item.rpartition("/")[2]) if form in position_of
        ]
        if not known:
            return None
        found[name] = known[0], repeat
    pairs = _all(found)
    return pairs and _pairs(pairs, len(prompts), repeats)


def _by_numbers(names: Sequence[str], prompts: int, repeats: int) -> Positions | None:
    """Return the positions from names that differ only in a number, or in one per prompt and one per repeat."""
    if len(names) == 1:
        return {names[0]: (0, 0)}
    parts = [re.split(r"(\d+)", name) for name in names]
    if len({tuple(part[::2]) for part in parts}) != 1:
        return None
    columns = [tuple(map(int, column)) for column in zip(*(part[1::2] for part in parts), strict=True)]
    varied = list(dict.fromkeys(column for column in columns if len(set(column)) > 1))
    if len(varied) == 1:
        start = min(varied[0])
        if start > 1 or sorted(varied[0]) != list(range(start, start + len(names))):
            return None
        positions = (divmod(number - start, repeats) for number in varied[0])
        return dict(zip(names, positions, strict=True))
    if len(varied) != 2:
        return None
    orders = [dict(zip(names, zip(*pair, strict=True), strict=True)) for pair in (varied, varied[::-1])]
    fitting = [found for order in orders if (found := _pairs(order, prompts, repeats))]
    return fitting[0] if len(fitting) == 1 else None


def _pairs(pairs: Mapping[str, tuple[int, ...]], prompts: int, repeats: int) -> Positions | None:
    """Return the pairs counted from 0, if each (prompt, repeat) occurs once."""
    starts = [min(pair[axis] for pair in pairs.values()) for axis in (0, 1)]
    if max(starts) > 1:
        return None
    positions = {name: (pair[0] - starts[0], pair[1] - starts[1]) for name, pair in pairs.items()}
    expected = {(prompt, repeat) for prompt in range(prompts) for repeat in range(repeats)}
    return positions if len(positions) == len(expected) and set(positions.values()) == expected else None


def _all(found: Mapping[str, tuple[int, int] | None]) -> Positions | None:
    positions = {name: position for name, position in found.items() if position is not None}
    return positions if len(positions) == len(found) else None
