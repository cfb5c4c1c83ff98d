"""Captions and labels in metadata files."""

import json

import pyarrow as pa
import pytest
from own_images import IMAGE, read, write
from own_sources import parquet_of

from pipelines.core.config import ConfigError
from pipelines.data.curate.config import CurateSettings
from pipelines.data.curate.image_lists import list_entries
from pipelines.data.curate.samples import Columns
from pipelines.data.curate.sources import find_source
from pipelines.data.curate.step import check


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv", "metadata.parquet"])
@pytest.mark.parametrize(("image", "caption"), [("file_name", "text"), ("image", "prompt"), ("file_name", "legende")])
def test_metadata_files(tmp_path, name, image, caption):
    rows = [{image: "images/a.png", caption: "one", "seed": 3}, {image: "gone.png", caption: "two", "seed": 4}]
    if name.endswith("jsonl"):
        data = "\n".join(map(json.dumps, rows)).encode()
    elif name.endswith("csv"):
        data = f"{image},{caption},seed\nimages/a.png,one,3\ngone.png,two,4\n".encode()
    else:
        data = parquet_of(pa.Table.from_pylist(rows))
    source = write(tmp_path / "in", {name: data, "images/a.png": IMAGE, "images/b.png": IMAGE})
    found = read(source, tmp_path / "out")
    (row,) = (key for key in found if key.startswith(name))
    assert found == {
        "images/a.png": ("one", ""), "images/b.png": ("", "no row in metadata"),
        row: ("", "image of metadata row is missing"),
    }  # fmt: skip


def test_labels_in_metadata(tmp_path):
    source = write(tmp_path / "in", {"metadata.jsonl": b'{"image": "a.png", "y": 4}', "a.png": IMAGE})
    (entry,) = list_entries(find_source(source, Columns(label="y")), Columns(label="y"))
    assert entry.record == {"y": 4}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"file_name,a,b\nx.png,words,more\n", "several columns may hold the captions, a, b; .*columns.caption=a"),
        (b"number,text\n3,words\n", "columns.image='jpg': .*metadata.csv has no such column; it has number, text"),
        (b"file_name,text\nx.png\n", "metadata.csv line 2: the row has 1 columns, not 2"),
        (b"file_name,text\nx.png,\xff\n", "metadata.csv is not UTF-8 text: byte 21"),
    ],
)
def test_metadata_that_is_refused(tmp_path, data, message):
    source = write(tmp_path / "in", {"metadata.csv": data, "x.png": IMAGE})
    with pytest.raises(ConfigError, match=message) as error:
        check(CurateSettings(source=source))
    assert "\n" not in str(error.value)


def test_column_of_captions_is_chosen(tmp_path):
    source = write(tmp_path / "in", {"metadata.csv": b"file_name,a,b\nx.png,one,two\n", "x.png": IMAGE})
    assert read(source, tmp_path / "out", Columns(caption="b")) == {"x.png": ("two", "")}
