"""Curated and encoded parquet: written row by row, read a row group at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from pipelines import storage
from pipelines.images import decode_image, to_array

ROW_GROUP = 64


def read_rows(uri: str, columns: list[str]) -> Iterator[dict[str, list[Any]]]:
    """The row groups of a parquet file, one at a time, as columns."""
    filesystem, path = storage.open_filesystem(uri)
    with filesystem.open_input_file(path) as source, pq.ParquetFile(source) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns).to_pydict()


class RowWriter:
    """A parquet file filled row by row, holding one row group in memory."""

    def __init__(self, path: Path, schema: pa.Schema):
        self.path, self.schema = path, schema
        self.writer = pq.ParquetWriter(path, schema)
        self.rows: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        if len(self.rows) == ROW_GROUP:
            self.flush()

    def flush(self) -> None:
        if self.rows:
            self.writer.write_table(pa.Table.from_pylist(self.rows, self.schema))
            self.rows = []

    def __enter__(self) -> "RowWriter":
        return self

    def __exit__(self, *_) -> None:
        self.flush()
        self.writer.close()


@dataclass(frozen=True)
class Pictures:
    """Rows of one curated file: keys, captions, and images (B, 3, H, W) sRGB in [-1, 1]."""

    keys: list[str]
    captions: list[str]
    images: Tensor


def pixels_of(encoded: list[bytes]) -> Tensor:
    """Encoded pictures of one size -> (B, 3, H, W) sRGB in [-1, 1], float32."""
    arrays = np.stack([to_array(decode_image(data)) for data in encoded])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 127.5 - 1


def read_images(uri: str) -> Iterator[Pictures]:
    """The row groups of a curated file; its pictures are of one size."""
    for rows in read_rows(uri, ["key", "caption", "image"]):
        yield Pictures(rows["key"], rows["caption"], pixels_of(rows["image"]))
