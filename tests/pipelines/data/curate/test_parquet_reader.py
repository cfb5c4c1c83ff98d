"""Rows of parquet shards, and what the parquet beside a tar is taken for."""

import os
from datetime import date
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.core.config import ConfigError
from pipelines.data.curate.metadata_files import look_at_table
from pipelines.data.curate.parquet_reader import Metadata, read_parquet
from pipelines.data.curate.samples import Columns


@pytest.fixture
def read_back(tmp_path):
    """Write a table as a parquet shard and read it back."""

    def read(table, columns=None, **options):
        pq.write_table(table, tmp_path / "00000.parquet", **options)
        return list(read_parquet(str(tmp_path / "00000.parquet"), columns or Columns()))

    return read


def table_of(keys, **more):
    rows = {"key": keys, "jpg": [k.encode() * 50 for k in keys], "caption": [f"caption {k}" for k in keys]}
    return pa.table({**rows, **more})


def test_rows_of_a_parquet_shard(read_back):
    samples = read_back(table_of(["a", "b"], aesthetic=[5.0, 6.0]), row_group_size=1)
    assert [(s.key, s.image, s.caption, s.problem) for s in samples] == [
        ("a", b"a" * 50, "caption a", ""), ("b", b"b" * 50, "caption b", "")
    ]  # fmt: skip
    assert samples[1].record == {"aesthetic": 6.0}


def test_columns_by_other_names(read_back):
    table = pa.table({"ID": [7], "bytes": [b"x"], "TEXT": ["words"], "AESTHETIC_SCORE": [6.0]})
    columns = Columns(key="ID", image="bytes", caption="TEXT", aesthetic="AESTHETIC_SCORE")
    (found,) = read_back(table, columns)
    assert (found.key, found.image, found.caption, found.record) == ("7", b"x", "words", {"AESTHETIC_SCORE": 6.0})


def test_cells_that_are_missing(read_back):
    table = pa.table(
        {"key": ["a", None, "c", "d"], "jpg": [None, b"x", b"x", None], "caption": ["x", "x", None, "x"],
         "status": ["success"] * 3 + ["failed_to_download"]}
    )  # fmt: skip
    samples = read_back(table)
    assert [s.problem for s in samples] == ["no image of its key", "no key", "", "failed download"]
    assert samples[2].caption == ""


@pytest.mark.parametrize("status", ["active", "failed review", "", None, 200])
def test_status_of_another_tool_is_ignored(read_back, status):
    assert [s.problem for s in read_back(table_of(["a"], status=[status]))] == [""]


@pytest.mark.parametrize(
    ("values", "keys"),
    [
        ([3.0, 2.5, 1e15, float("nan"), None], ["3", "2.5", "1000000000000000", "", ""]),
        ([Decimal("3.00"), Decimal("2.50")], ["3", "2.50"]),
        ([7, 0], ["7", "0"]),
        ([b"a", b"\xff"], ["a", "\\xff"]),
        ([date(2020, 1, 2)], ["2020-01-02"]),
        (["", "x"], ["", "x"]),
        ([[1]], [""]),
    ],
)
def test_keys_of_any_type(read_back, values, keys):
    table = pa.table({"key": values, "jpg": [b"x"] * len(values), "caption": ["x"] * len(values)})
    samples = read_back(table)
    assert [s.key for s in samples] == [key or str(row) for row, key in enumerate(keys)]
    assert [s.problem for s in samples] == ["" if key else "no key" for key in keys]


def test_rows_without_a_key_column_are_numbered(read_back):
    samples = read_back(table_of(["x"] * 5), Columns(key=""), row_group_size=2)
    assert [s.key for s in samples] == ["0", "1", "2", "3", "4"]


def test_byte_order_mark_is_removed_from_captions(read_back):
    table = pa.table({"key": ["a"], "jpg": [b"x"], "caption": ["\ufeffwords"]})
    assert read_back(table)[0].caption == "words"


def test_global_key(read_back):
    samples = read_back(table_of(["a", "b"], hash=["h1", None]), Columns(global_key="hash"))
    assert [(s.key, s.global_key) for s in samples] == [("a", "h1"), ("b", "")]
    samples = read_back(table_of(["a", "b"]), Columns(global_key="key"))
    assert [(s.key, s.global_key) for s in samples] == [("a", "a"), ("b", "b")]


def test_parquet_shards_that_cannot_be_read(tmp_path, read_back):
    samples = read_back(table_of(["a", "b"]).drop_columns(["jpg"]))
    assert [s.problem for s in samples] == ["shard without column jpg"] * 2
    assert read_back(table_of(["a"]).slice(0, 0)) == []
    for data in (b"", b"no parquet", (tmp_path / "00000.parquet").read_bytes()[:40]):
        (tmp_path / "00001.parquet").write_bytes(data)
        (found,) = read_parquet(str(tmp_path / "00001.parquet"), Columns())
        assert (found.key, found.problem) == ("", "no readable shard")


def test_damaged_row_group_costs_its_rows_only(tmp_path):
    keys = [f"{i:03d}" for i in range(60)]
    pq.write_table(
        pa.table({"key": keys, "jpg": [os.urandom(500) for _ in keys], "caption": keys}),
        tmp_path / "00000.parquet", row_group_size=20, compression="gzip",
    )  # fmt: skip
    path = tmp_path / "00000.parquet"
    column = pq.ParquetFile(path).metadata.row_group(1).column(1)
    data = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    data[start : start + 40] = bytes(40)
    path.write_bytes(data)
    samples = list(read_parquet(str(path), Columns()))
    assert len(samples) == 60
    assert len({s.key for s in samples}) == 60
    good = [s.key for s in samples if not s.problem]
    assert good == keys[:20] + keys[40:]
    assert {s.problem for s in samples} == {"", "damaged shard"}


def test_wrong_column_is_named_before_anything_starts(tmp_path):
    path = str(tmp_path / "00000.parquet")
    pq.write_table(table_of(["a"]), path)
    look_at_table(path, Columns())
    with pytest.raises(ConfigError, match="columns.image='png': .* no such column; it has key, jpg, caption"):
        look_at_table(path, Columns(image="png"))


def test_large_cells_are_held_one_at_a_time(tmp_path):
    """Of one page of a dictionary: some kilobytes in the file, gigabytes as rows."""
    rows = 40
    table = {"key": [str(i) for i in range(rows)], "jpg": [b"a" * (8 << 20)] * rows, "caption": ["x"] * rows}
    pq.write_table(pa.table(table), tmp_path / "00000.parquet")
    del table
    held = pa.total_allocated_bytes()
    most = 0
    for sample in read_parquet(str(tmp_path / "00000.parquet"), Columns()):
        most = max(most, pa.total_allocated_bytes() - held)
        assert len(sample.image) == 8 << 20
    assert most < 6 * (8 << 20)


def metadata_of(tmp_path, table):
    pq.write_table(table, tmp_path / "00000.parquet")
    return Metadata(str(tmp_path / "00000.parquet"), Columns())


def test_metadata_of_img2dataset(tmp_path):
    table = pa.table({"key": ["1", "2", "3"], "status": ["success", "success", "failed_to_resize"]})
    metadata = metadata_of(tmp_path, table)
    metadata.found("folder/1")
    assert list(metadata.missing()) == [("2", False), ("3", True)]
    assert not metadata.is_table


def test_keys_of_the_metadata_that_lost_their_zeros(tmp_path):
    metadata = metadata_of(tmp_path, pa.table({"key": [0.0, 7.0], "status": ["success", "success"]}))
    metadata.found("000000000")
    metadata.found("000000007")
    assert list(metadata.missing()) == []


@pytest.mark.parametrize("columns", [{"url": ["x"]}, {"key": ["a"]}, {"key": ["a"], "status": ["done"]}])
def test_foreign_parquet_beside_a_tar_is_ignored(tmp_path, columns):
    metadata = metadata_of(tmp_path, pa.table(columns))
    assert list(metadata.missing()) == []
    assert not metadata.is_table
    assert not metadata.problem


def test_damaged_metadata_is_reported(tmp_path):
    (tmp_path / "00000.parquet").write_bytes(b"no parquet")
    assert Metadata(str(tmp_path / "00000.parquet"), Columns()).problem == "metadata beside tar cannot be read"
