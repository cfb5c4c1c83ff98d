"""Second pass of curation: plan files of even length over all staged rows without duplicates, and write them."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from pipelines.core import storage
from pipelines.data.curate.config import Encoding
from pipelines.data.curate.duplicates import REASONS, Index, find_duplicates
from pipelines.data.curate.shard import REJECTED, STAGED, index_file, schema_of, staged_file
from pipelines.data.datasets import RowWriter, read_rows
from pipelines.data.images import decode_image, encode_image

# Part of a staged file: URI, first row, last row (exclusive), and the rows in between that are dropped.
Segment = tuple[str, int, int, list[int]]


def plan_files(folder: str, names: list[str], near_bits: int | None, rows_per_file: int) -> dict[str, Any]:
    """Plan the output files, or load the plan of an interrupted run.

    Dropped rows are written to `rejected/duplicates`, a path that no shard's rejected rows use.

    Args:
        folder: Folder of the artifact.
        names: Names of the shards.
        near_bits: Maximum number of different hash bits of duplicates; None to compare no hashes.
        rows_per_file: Maximum number of rows per file.

    Returns:
        {"files": {SPLIT/NAME: segments}, "dropped": counts by reason, "kept": counts by target}.
    """
    plan_file = storage.join(folder, STAGED, "plan.json")
    if storage.exists(plan_file):
        return json.loads(storage.read_bytes(plan_file))
    parts = [_read_index(folder, name) for name in names]
    columns = [np.concatenate([part[i] for part in parts]) for i in range(4)]
    reason, keeper = find_duplicates(Index(*columns), near_bits)
    storage.write_file(
        storage.join(folder, "rejected", "duplicates", "00000.parquet"),
        lambda path: _write_dropped(path, folder, names, reason, keeper),
    )
    starts = np.cumsum([0, *(len(part[0]) for part in parts)])
    segments: dict[str, list[Segment]] = defaultdict(list)
    for name, part, start in zip(names, parts, starts.tolist(), strict=False):
        for target, rows in _rows_by_target(part[4]).items():
            dropped = np.flatnonzero(reason[start + rows]).tolist()
            segments[target].append((staged_file(folder, name, target), 0, len(rows), dropped))
    files = {}
    for target, pieces in sorted(segments.items()):
        for number, piece in enumerate(_even_files(pieces, rows_per_file)):
            files[f"{target}-{number:05d}"] = piece
    plan = {
        "files": files,
        "dropped": {why: int(n) for why, n in zip(REASONS[1:], np.bincount(reason, minlength=4)[1:], strict=True) if n},
        "kept": {target: sum(map(_length, pieces)) for target, pieces in segments.items()},
    }
    storage.write_bytes(plan_file, json.dumps(plan).encode())
    return plan


def _read_index(folder: str, name: str) -> tuple:
    """Read the numeric columns of a shard's index and the target of each row; empty if the shard kept nothing."""
    uri = index_file(folder, name)
    numbers = ("key_hash", "sha256", "phash", "pixels")
    if not storage.exists(uri):
        return *(np.empty(0, np.int64 if n == "pixels" else np.uint64) for n in numbers), np.empty(0, np.int32)
    with storage.open_file(uri) as file:
        table = pq.read_table(file, columns=[*numbers, "target"])
    return *(table[n].to_numpy() for n in numbers), table["target"].combine_chunks().dictionary_encode()


def _rows_by_target(targets: Any) -> dict[str, Any]:
    """Return {target: indices of the shard's rows with this target}, in the order of the target's staged file."""
    if not len(targets):
        return {}
    codes = targets.indices.to_numpy()
    return {str(name): np.flatnonzero(codes == code) for code, name in enumerate(targets.dictionary.to_pylist())}


def _length(segment: Segment) -> int:
    _, first, last, dropped = segment
    return last - first - len(dropped)


def _even_files(segments: list[Segment], rows_per_file: int) -> Iterator[list[Segment]]:
    """Split the kept rows into as few files as possible, whose lengths differ by at most one."""
    total = sum(map(_length, segments))
    count = -(-total // rows_per_file)
    sizes = [total // count + (i < total % count) for i in range(count)]
    queue = list(segments)[::-1]
    for size in sizes:
        file: list[Segment] = []
        while size:
            uri, first, last, dropped = queue.pop()
            left_out = set(dropped)
            kept = [row for row in range(first, last) if row not in left_out]
            if len(kept) > size:
                cut = kept[size]
                queue.append((uri, cut, last, [row for row in dropped if row >= cut]))
                last, dropped, kept = cut, [row for row in dropped if row < cut], kept[:size]
            if kept:
                file.append((uri, first, last, dropped))
            size -= len(kept)
        yield file


def _write_dropped(path: Path, folder: str, names: list[str], reason: Any, keeper: Any) -> None:
    """Write the dropped rows with reason and kept duplicate, reading the keys one shard at a time, in two passes."""
    kept_rows = np.unique(keeper[keeper >= 0])
    kept_keys = {row: key for row, key in _keys(folder, names) if _contains(kept_rows, row)} if len(kept_rows) else {}
    with RowWriter(path, REJECTED) as writer:
        for row, key in _keys(folder, names) if len(kept_rows) else ():
            if reason[row]:
                writer.add({"key": key, "reason": REASONS[reason[row]], "duplicate_of": kept_keys[int(keeper[row])]})


def _contains(ordered: Any, value: int) -> bool:
    index = int(np.searchsorted(ordered, value))
    return index < len(ordered) and ordered[index] == value


def _keys(folder: str, names: Iterable[str]) -> Iterator[tuple[int, str]]:
    row = 0
    for name in names:
        if storage.exists(uri := index_file(folder, name)):
            for group in read_rows(uri, ["key"]):
                for key in group["key"]:
                    yield row, key
                    row += 1


class FileWriter:
    """Worker of `map_items` that writes one file of the plan. Items are JSON: [SPLIT/NAME, segments].

    Args:
        folder: Folder of the artifact.
        flipped: Encoding of the mirrored copies of training images; None for no copies.
    """

    def __init__(self, folder: str, flipped: Encoding | None = None):
        self.folder, self.flipped = folder, flipped

    def __call__(self, item: str) -> dict[str, Any]:
        """Write a file; return its number of rows, without mirrored copies."""
        name, segments = json.loads(item)
        flipped = self.flipped if name.startswith("train/") else None

        def write(path: Path) -> None:
            with RowWriter(path, schema_of(name)) as writer:
                for segment in segments:
                    for row in _rows_of(segment):
                        writer.add(row)
                        if flipped:
                            writer.add(flip(row, flipped))

        storage.write_file(storage.join(self.folder, f"{name}.parquet"), write)
        return {"rows": sum(map(_length, segments))}


def flip(row: dict[str, Any], encoding: Encoding) -> dict[str, Any]:
    """Return a curated row with its images mirrored horizontally, under the key KEY#flipped."""
    mirrored = {"key": f"{row['key']}#flipped", "image": _mirror(row["image"], encoding)}
    if "references" in row:
        mirrored["references"] = [_mirror(data, encoding) for data in row["references"]]
    return row | mirrored


def _mirror(data: bytes, encoding: Encoding) -> bytes:
    image = decode_image(data).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return encode_image(image, encoding.format, encoding.quality, encoding.effort)


def _rows_of(segment: Segment) -> Iterator[dict[str, Any]]:
    uri, first, last, dropped = segment
    left_out, row = set(dropped), 0
    with storage.open_file(uri) as source, pq.ParquetFile(source) as file:
        for group in range(file.num_row_groups):
            rows = range(row, row := row + file.metadata.row_group(group).num_rows)
            if rows.stop > first and rows.start < last:
                for number, values in zip(rows, file.read_row_group(group).to_pylist(), strict=True):
                    if first <= number < last and number not in left_out:
                        yield values
