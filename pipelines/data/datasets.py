"""Read and write the parquet files of curated and encoded images, one row group at a time."""

import json
import logging
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from pipelines.core import storage
from pipelines.core.artifacts import Artifact
from pipelines.core.map_items import item_name
from pipelines.data.images import decode_image, to_array

LOGGER = logging.getLogger(__name__)
ROW_GROUP = 64
MAX_BATCH_PIXELS = 1 << 21  # pixels decoded at once: 6 MiB as uint8, 24 MiB as float32


def read_rows(uri: str, columns: list[str], groups: range | None = None) -> Iterator[dict[str, list[Any]]]:
    """Yield the row groups of a parquet file, or the given ones, as columns."""
    with storage.open_file(uri) as source, pq.ParquetFile(source) as file:
        for group in range(file.num_row_groups) if groups is None else groups:
            yield file.read_row_group(group, columns).to_pydict()


def rows_by_group(uri: str) -> list[int]:
    """Return the number of rows in each row group of a parquet file."""
    with storage.open_file(uri) as source:
        metadata = pq.read_metadata(source)
    return [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]


def has_references(file: str) -> bool:
    """Return whether the rows of a curated file, or of a target of curate, are edits, which have reference images.

    The name of such a file begins with the images' size and +R for R reference images.
    """
    return "+" in file.rpartition("/")[2]


def find_test_split(curated: Artifact, at_least: int = 1, edits: bool = False) -> str:
    """Return the split to test on: held_out, or train for a small data set of which fewer images are held out.

    Args:
        curated: Artifact of the curate step.
        at_least: Number of images that the test needs.
        edits: Whether edits count, too.
    """
    files = [uri for uri in curated.files("held_out", ".parquet") if edits or not has_references(uri)]
    found = sum(sum(rows_by_group(uri)) for uri in files)
    if found >= at_least:
        return "held_out"
    LOGGER.warning("%s: %d images are held out, too few to test on; training images are used", curated.uri, found)
    return "train"


class RowWriter:
    """Writer of a parquet file that takes single rows and holds one row group in memory."""

    def __init__(self, path: Path, schema: pa.Schema, rows_per_group: int = ROW_GROUP):
        self.path, self.schema, self.rows_per_group = path, schema, rows_per_group
        self.writer = pq.ParquetWriter(path, schema)
        self.rows: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        """Add a row; write a row group when it is full."""
        self.rows.append(row)
        if len(self.rows) == self.rows_per_group:
            self.flush()

    def flush(self) -> None:
        """Write the rows that are held as a row group."""
        if self.rows:
            self.writer.write_table(pa.Table.from_pylist(self.rows, self.schema))
            self.rows = []

    def close(self) -> None:
        """Write the remaining rows and close the file."""
        self.flush()
        self.writer.close()

    def __enter__(self) -> "RowWriter":
        return self

    def __exit__(self, *_) -> None:
        self.close()


@dataclass(frozen=True)
class ImageBatch:
    """A batch of rows of one curated file."""

    keys: list[str]
    captions: list[str]
    pixels: Tensor
    """(B, 3, H, W) sRGB in uint8"""

    @property
    def images(self) -> Tensor:
        """Return the images (B, 3, H, W), sRGB in [-1, 1], float32."""
        return self.pixels.float() / 127.5 - 1


def decode_pixels(encoded: list[bytes]) -> Tensor:
    """Decode images of one size to (B, 3, H, W) sRGB in uint8."""
    arrays = np.stack([to_array(decode_image(data)) for data in encoded])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2)


def decode_batch(encoded: list[bytes]) -> Tensor:
    """Decode images of one size to (B, 3, H, W) sRGB in [-1, 1], float32."""
    return decode_pixels(encoded).float() / 127.5 - 1


def read_images(
    uri: str, groups: range | None = None, max_pixels: int = MAX_BATCH_PIXELS, max_rows: int = ROW_GROUP
) -> Iterator[ImageBatch]:
    """Yield the images of a curated file in batches, none of which spans two row groups.

    Args:
        uri: The parquet file.
        groups: Row groups to read; by default all.
        max_pixels: Maximum number of pixels per batch, which has at least one image.
        max_rows: Maximum number of images per batch.
    """
    for rows in read_rows(uri, ["key", "caption", "width", "height", "image"], groups):
        size = max(1, min(max_rows, max_pixels // max(1, rows["width"][0] * rows["height"][0])))
        for i in range(0, len(rows["key"]), size):
            part = slice(i, i + size)
            yield ImageBatch(rows["key"][part], rows["caption"][part], decode_pixels(rows["image"][part]))


@dataclass(frozen=True)
class Piece:
    """Consecutive row groups of one parquet file, the unit of work of a task."""

    uri: str
    groups: range
    rows: int

    @property
    def name(self) -> str:
        """Return the item name, FOLDER-FILE-GROUP."""
        return f"{item_name(self.uri)}-{self.groups.start}"

    def to_json(self) -> str:
        """Serialize the piece as an item of `map_items`."""
        return json.dumps([self.uri, self.groups.start, self.groups.stop, self.rows])

    @classmethod
    def from_json(cls, text: str) -> "Piece":
        """Parse the result of `to_json`."""
        uri, start, stop, rows = json.loads(text)
        return cls(uri, range(start, stop), rows)


def cut_into_pieces(files: list[str], min_pieces: int = 16) -> list[Piece]:
    """Split files into pieces: one per file, or several per file if there are fewer files than `min_pieces`.

    Row groups are not split, so there may be fewer pieces. Their order is pseudorandom and depends only on their names.
    """
    pieces = []
    for uri in files:
        rows = rows_by_group(uri)
        count = min(len(rows), -(-min_pieces // len(files)))
        edges = [len(rows) * i // count for i in range(count + 1)] if count else [0]
        pieces += [Piece(uri, range(a, b), sum(rows[a:b])) for a, b in zip(edges, edges[1:], strict=False)]
    return sorted(pieces, key=lambda piece: zlib.crc32(piece.name.encode()))
