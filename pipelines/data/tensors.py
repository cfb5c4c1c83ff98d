"""Tensors as Arrow and parquet hold them, any reader's with their shape: bfloat16 as its bits.

Arrow has no bfloat16, so the numbers are uint16 and the field's metadata names their meaning. Nothing is copied
where memory already lies as it should: tensors that come out of Arrow are to be read, not written to.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from pipelines.core import storage

METADATA = {"dtype": "bfloat16"}


def tensor_field(name: str, shape: Sequence[int]) -> pa.Field:
    """A column of tensors of one shape."""
    return pa.field(name, pa.fixed_shape_tensor(pa.uint16(), list(shape)), nullable=False, metadata=METADATA)


def ragged_field(name: str, width: int) -> pa.Field:
    """A column of (T_i, width) tensors, each of its own length."""
    return pa.field(name, pa.list_(pa.list_(pa.uint16(), width)), nullable=False, metadata=METADATA)


def to_tensor_array(values: Tensor) -> pa.FixedShapeTensorArray:
    """(B, *shape), rounded to bfloat16 -> B rows."""
    shape = list(values.shape[1:])
    rows = pa.FixedSizeListArray.from_arrays(_bits(values), math.prod(shape))
    return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.uint16(), shape), rows)


def to_ragged_array(values: Sequence[Tensor]) -> pa.ListArray:
    """(T_i, width) tensors, at least one, rounded to bfloat16 -> a row each."""
    ends = np.cumsum([0, *(len(v) for v in values)], dtype=np.int32)
    tokens = pa.FixedSizeListArray.from_arrays(_bits(torch.cat(list(values))), values[0].shape[1])
    return pa.ListArray.from_arrays(pa.array(ends), tokens)


def from_tensor_array(array: pa.FixedShapeTensorArray) -> Tensor:
    """B rows -> (B, *shape) bfloat16. Raises ValueError where a row is null."""
    return _tensor(_whole(array).storage.flatten()).view(len(array), *array.type.shape)


def from_ragged_array(array: pa.ListArray) -> list[Tensor]:
    """Each row -> (T_i, width) bfloat16. Raises ValueError where a row is null."""
    lengths = np.diff(_whole(array).offsets.to_numpy())
    tokens = _tensor(array.flatten().flatten()).view(-1, array.type.value_type.list_size)
    return list(tokens.split(lengths.tolist()))


def to_columns(table: pa.Table) -> dict[str, Any]:
    """Each column's rows: a Tensor (B, *shape), a list of tensors (T_i, width), or a list of Python's own values."""
    return {name: _column(table[name].combine_chunks()) for name in table.column_names}


def _column(array: pa.Array) -> Any:
    if isinstance(array, pa.FixedShapeTensorArray):
        return from_tensor_array(array)
    if pa.types.is_list(array.type) and pa.types.is_fixed_size_list(array.type.value_type):
        return from_ragged_array(array)
    return array.to_pylist()


def read_group(uri: str, group: int, columns: Sequence[str]) -> dict[str, Any]:
    """One row group of a parquet file; see `to_columns`."""
    with storage.open_file(uri) as source, pq.ParquetFile(source) as file:
        return to_columns(file.read_row_group(group, list(columns)))


def open_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Parquet widens each uint16 to four bytes: with a stream for each of these, compressed, five sixths of bfloat16's
    own size are left, without loss. (zstd leaves two thirds and takes three times as long to read.)"""
    depths = {f.name: 2 if pa.types.is_list(f.type) else 1 for f in schema if _is_tensor(f)}
    encodings = {name + depth * ".list.element": "BYTE_STREAM_SPLIT" for name, depth in depths.items()}
    return pq.ParquetWriter(path, schema, compression="lz4", use_dictionary=False, column_encoding=encodings)


def _is_tensor(field: pa.Field) -> bool:
    return (field.metadata or {}).get(b"dtype") == b"bfloat16"


def _whole(array: pa.Array) -> pa.Array:
    if array.null_count:
        raise ValueError(f"{array.null_count} of {len(array)} rows hold no tensor")
    return array


def _bits(values: Tensor) -> pa.Array:
    """Flat bit patterns."""
    return pa.array(values.to("cpu", torch.bfloat16).contiguous().view(torch.uint16).numpy().ravel())


def _tensor(bits: pa.Array) -> Tensor:
    """Flat bfloat16. By DLPack, which knows an array's offset and does not mind that its memory is read-only."""
    return torch.from_dlpack(bits).view(torch.bfloat16)
