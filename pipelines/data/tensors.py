"""Store bfloat16 tensors in Arrow and parquet, with their shapes, as uint16 bit patterns.

Arrow has no bfloat16, so the field's metadata has the dtype. Conversions avoid copies where the memory layout allows:
tensors from Arrow share its memory and must not be written to.
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
    """Return the Arrow field of a column of tensors of one shape."""
    return pa.field(name, pa.fixed_shape_tensor(pa.uint16(), list(shape)), nullable=False, metadata=METADATA)


def ragged_field(name: str, width: int) -> pa.Field:
    """Return the Arrow field of a column of (T_i, width) tensors, whose lengths T_i differ."""
    return pa.field(name, pa.list_(pa.list_(pa.uint16(), width)), nullable=False, metadata=METADATA)


def to_tensor_array(values: Tensor) -> pa.FixedShapeTensorArray:
    """Convert a tensor (B, *shape), rounded to bfloat16, to B rows."""
    shape = list(values.shape[1:])
    rows = pa.FixedSizeListArray.from_arrays(_bits(values), math.prod(shape))
    return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.uint16(), shape), rows)


def to_ragged_array(values: Sequence[Tensor]) -> pa.ListArray:
    """Convert one or more (T_i, width) tensors, rounded to bfloat16, to one row each."""
    ends = np.cumsum([0, *(len(v) for v in values)], dtype=np.int32)
    tokens = pa.FixedSizeListArray.from_arrays(_bits(torch.cat(list(values))), values[0].shape[1])
    return pa.ListArray.from_arrays(pa.array(ends), tokens)


def from_tensor_array(array: pa.FixedShapeTensorArray) -> Tensor:
    """Convert B rows to a tensor (B, *shape), bfloat16. Raises ValueError if a row is null."""
    return _tensor(_check_complete(array).storage.flatten()).view(len(array), *array.type.shape)


def from_ragged_array(array: pa.ListArray) -> list[Tensor]:
    """Convert each row to a tensor (T_i, width), bfloat16. Raises ValueError if a row is null."""
    lengths = np.diff(_check_complete(array).offsets.to_numpy())
    tokens = _tensor(array.flatten().flatten()).view(-1, array.type.value_type.list_size)
    return list(tokens.split(lengths.tolist()))


def to_columns(table: pa.Table) -> dict[str, Any]:
    """Convert each column to a tensor (B, *shape), a list of tensors (T_i, width), or a list of Python values."""
    return {name: _column(table[name].combine_chunks()) for name in table.column_names}


def _column(array: pa.Array) -> Any:
    if isinstance(array, pa.FixedShapeTensorArray):
        return from_tensor_array(array)
    if pa.types.is_list(array.type) and pa.types.is_fixed_size_list(array.type.value_type):
        return from_ragged_array(array)
    return array.to_pylist()


def read_group(uri: str, group: int, columns: Sequence[str]) -> dict[str, Any]:
    """Read one row group of a parquet file; see `to_columns`."""
    with storage.open_file(uri) as source, pq.ParquetFile(source) as file:
        return to_columns(file.read_row_group(group, list(columns)))


def open_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Open a parquet writer that compresses bfloat16 losslessly to five sixths of its size.

    Parquet widens uint16 to four bytes, so the bytes are split into streams and compressed with lz4. (zstd compresses
    to two thirds, but reading takes three times as long.)
    """
    depths = {f.name: 2 if pa.types.is_list(f.type) else 1 for f in schema if _is_tensor(f)}
    encodings = {name + depth * ".list.element": "BYTE_STREAM_SPLIT" for name, depth in depths.items()}
    return pq.ParquetWriter(path, schema, compression="lz4", use_dictionary=False, column_encoding=encodings)


def _is_tensor(field: pa.Field) -> bool:
    return (field.metadata or {}).get(b"dtype") == b"bfloat16"


def _check_complete(array: pa.Array) -> pa.Array:
    """Return the array. Raises ValueError if a row is null."""
    if array.null_count:
        raise ValueError(f"{array.null_count} of {len(array)} rows hold no tensor")
    return array


def _bits(values: Tensor) -> pa.Array:
    """Return a tensor's bfloat16 bit patterns, flattened."""
    return pa.array(values.to("cpu", torch.bfloat16).contiguous().view(torch.uint16).numpy().ravel())


def _tensor(bits: pa.Array) -> Tensor:
    """Return bit patterns as a flat bfloat16 tensor, by DLPack, which handles offsets and read-only memory."""
    return torch.from_dlpack(bits).view(torch.bfloat16)
