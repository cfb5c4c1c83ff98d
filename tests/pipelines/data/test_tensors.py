import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipelines.data.datasets import rows_by_group
from pipelines.data.tensors import (
    from_ragged_array,
    from_tensor_array,
    open_writer,
    ragged_field,
    read_group,
    tensor_field,
    to_ragged_array,
    to_tensor_array,
)

LENGTHS = (3, 1, 7, 2)


@pytest.fixture
def tensors() -> torch.Tensor:
    return torch.randn(6, 4, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def ragged() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, 5, generator=generator) for n in LENGTHS]


def numbers(bits: np.ndarray) -> torch.Tensor:
    """What a reader without our code does: bfloat16 is the upper half of float32."""
    return torch.from_numpy((bits.astype(np.uint32) << 16).view(np.float32))


def equal(a, b) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_tensors_come_back_rounded_and_without_a_copy(tensors):
    half = tensors.bfloat16()
    array = to_tensor_array(half)
    back = from_tensor_array(array)
    assert torch.equal(back, half)
    assert back.data_ptr() == half.data_ptr()
    assert torch.equal(from_tensor_array(to_tensor_array(tensors)), half)
    assert torch.equal(from_tensor_array(array.slice(2, 3)), half[2:5])
    assert torch.equal(from_tensor_array(array.slice(1).slice(2, 2)), half[3:5])
    joined = pa.chunked_array([array.slice(4), array]).combine_chunks()
    assert torch.equal(from_tensor_array(joined), torch.cat([half[4:], half]))
    assert from_tensor_array(array.slice(6)).shape == (0, 4, 8)


def test_tensors_may_lie_in_memory_in_any_order(tensors):
    turned = tensors.transpose(1, 2)
    assert torch.equal(from_tensor_array(to_tensor_array(turned)), turned.bfloat16())


def test_ragged_tensors_come_back_each_of_its_length(ragged):
    half = [t.bfloat16() for t in ragged]
    array = to_ragged_array(ragged)
    assert array.type == pa.list_(pa.list_(pa.uint16(), 5))
    assert equal(from_ragged_array(array), half)
    assert equal(from_ragged_array(array.slice(1, 2)), half[1:3])
    assert equal(from_ragged_array(array.slice(1).slice(2)), half[3:])
    assert equal(from_ragged_array(pa.chunked_array([array.slice(2), array]).combine_chunks()), half[2:] + half)
    assert from_ragged_array(array.slice(4)) == []


def test_a_row_without_a_tensor_is_an_error(tensors, ragged):
    gap = pa.array([0, None, 1])
    with pytest.raises(ValueError, match="1 of 3 rows hold no tensor"):
        from_ragged_array(to_ragged_array(ragged).take(gap))
    storage = to_tensor_array(tensors).storage.take(gap)
    with pytest.raises(ValueError, match="1 of 3 rows hold no tensor"):
        from_tensor_array(pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.uint16(), [4, 8]), storage))


def test_any_reader_of_parquet_gets_shapes_and_numbers(tensors, ragged, tmp_path):
    schema = pa.schema([pa.field("key", pa.string()), tensor_field("latents", [4, 8]), ragged_field("text", 5)])
    table = pa.table([list("abcd"), to_tensor_array(tensors[:4]), to_ragged_array(ragged)], schema=schema)
    with open_writer(tmp_path / "x.parquet", schema) as writer:
        writer.write_table(table.slice(0, 3), row_group_size=3)
        writer.write_table(table.slice(3), row_group_size=1)
    read = pq.read_table(tmp_path / "x.parquet")
    assert read.schema.equals(schema)
    assert read.schema.field("latents").metadata == read.schema.field("text").metadata == {b"dtype": b"bfloat16"}
    latents = read["latents"].combine_chunks().to_numpy_ndarray()
    assert latents.shape == (4, 4, 8)
    assert torch.equal(numbers(latents), tensors[:4].bfloat16().float())
    for row, expected in zip(read["text"].to_pylist(), ragged, strict=True):
        assert torch.equal(numbers(np.array(row)), expected.bfloat16().float())
    assert rows_by_group(str(tmp_path / "x.parquet")) == [3, 1]
    last = read_group(str(tmp_path / "x.parquet"), 1, ["text", "key"])
    assert last["key"] == ["d"]
    assert equal(last["text"], [ragged[3].bfloat16()])


def test_files_are_smaller_than_the_numbers(tmp_path):
    values = torch.randn(64, 256, 128, generator=torch.Generator().manual_seed(0))
    schema = pa.schema([tensor_field("latents", [256, 128])])
    with open_writer(tmp_path / "x.parquet", schema) as writer:
        writer.write_table(pa.table([to_tensor_array(values)], schema=schema))
    size = (tmp_path / "x.parquet").stat().st_size
    assert size < 0.9 * 2 * values.numel()  # plain parquet takes twice the numbers
