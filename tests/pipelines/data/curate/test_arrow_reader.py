"""Data sets of Hugging Face, and tables of paths."""

import json

import pyarrow as pa
import pytest
from own_images import IMAGE, read, table, write
from own_sources import arrow_of, parquet_of


def test_data_sets_of_hugging_face(tmp_path):
    state = json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}).encode()
    files = {
        "saved/train/data-00000-of-00001.arrow": arrow_of(table("one", "two", "three")),
        "saved/train/cache-1.arrow": arrow_of(table("one")), "saved/train/state.json": state,
        "saved/train/dataset_info.json": b"{}", "saved/dataset_dict.json": b"{}",
        "hub/train-00000-of-00001.parquet": parquet_of(table("four")),
    }  # fmt: skip
    arrow = "saved/train/data-00000-of-00001.arrow"
    assert read(write(tmp_path / "in", files), tmp_path / "out") == {
        f"{arrow}/0": ("one", ""), f"{arrow}/1": ("two", ""), f"{arrow}/2": ("three", ""),
        "hub/train-00000-of-00001.parquet/0": ("four", ""),
    }  # fmt: skip


@pytest.mark.parametrize("image", ["images/a.png", {"bytes": None, "path": "images/a.png"}])
@pytest.mark.parametrize("name", ["train.parquet", "train.arrow"])
def test_table_of_paths_assigns_captions(tmp_path, image, name):
    rows = pa.Table.from_pylist([{"image": image, "text": "one"}])
    data = parquet_of(rows) if name.endswith("parquet") else arrow_of(rows)
    source = write(tmp_path / "in", {name: data, "images/a.png": IMAGE})
    assert read(source, tmp_path / "out") == {"images/a.png": ("one", "")}


def test_damaged_batch_of_an_arrow_file_costs_its_rows(tmp_path):
    data = bytearray(arrow_of(pa.table({"image": [IMAGE] * 4, "text": ["a", "b", "c", "d"]}), rows=2))
    place = data.index(len(IMAGE).to_bytes(4, "little") + (2 * len(IMAGE)).to_bytes(4, "little"))
    data[place + 4 : place + 8] = b"\xff\xff\xff\x7f"  # an offset far outside of the file
    found = read(write(tmp_path / "in", {"a.arrow": bytes(data)}), tmp_path / "out")
    assert [problem for _, problem in found.values()] == ["damaged shard", "damaged shard", "", ""]
    cut = arrow_of(table("one", "two"), rows=1)[:-8]  # at the end of a batch
    found = read(write(tmp_path / "cut", {"a.arrow": cut}), tmp_path / "out2")
    assert list(found.values()) == [("one", ""), ("two", ""), ("", "damaged shard")]
