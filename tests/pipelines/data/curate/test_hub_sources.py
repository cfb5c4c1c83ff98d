"""Every layout of a source on a stand-in of the hub, and captions that are joined with images of every layout."""

import io
import json
import zipfile

import pyarrow as pa
import pytest
from hub import serve_hub
from own_sources import arrow_of, parquet_of
from random_sources import image_of
from tars import sample, tar_of

from pipelines.core.config import ConfigError
from pipelines.core.storage import StorageError
from pipelines.data.curate.caption_table import load_caption_table
from pipelines.data.curate.config import CaptionTables, CurateSettings
from pipelines.data.curate.samples import Columns
from pipelines.data.curate.shard_reader import read_shard
from pipelines.data.curate.sources import find_source
from pipelines.data.curate.step import STEP, check, list_items

IMAGE = image_of(1, "PNG")
HASH = "0f3a"
ROOT = "hf://datasets/owner/images"


def zip_of(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def table_of(**columns):
    image = {"bytes": IMAGE, "path": "a.png"}
    return pa.table({"image": [image], **{name: [value] for name, value in columns.items()}})


BESIDE = {"data/a.png": IMAGE, "data/a.txt": b"one"}
LAYOUTS = {
    "beside": BESIDE,
    "metadata": {"data/metadata.csv": b"file_name,text\na.png,one\n", "data/a.png": IMAGE},
    "zip": {"photos.zip": zip_of(BESIDE)},
    "parquet": {"data/train-00000-of-00001.parquet": parquet_of(table_of(text="one"))},
    "arrow": {"data/train.arrow": arrow_of(table_of(text="one"))},
    "tar": {"data/00000.tar": tar_of(sample("a", IMAGE, b"one"))},
}


def read(source, out, columns=None):
    """Return the samples of all items of a source."""
    settings = CurateSettings(source=str(source), columns=columns or Columns())
    items = list_items(settings, find_source(settings.source, settings.columns), str(out))
    return [sample for place in items.values() for sample in read_shard(place, settings.columns)]


def write(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return str(folder)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_on_the_hub_is_read_like_a_local_one(tmp_path, layout):
    local = read(write(tmp_path / "in", LAYOUTS[layout]), tmp_path / "out")
    assert [(sample.image, sample.caption.strip(), sample.problem) for sample in local] == [(IMAGE, "one", "")]
    with serve_hub({"owner/images": {"README.md": b"about", **LAYOUTS[layout]}}):
        check(CurateSettings(source=ROOT))
        assert read(ROOT, tmp_path / "out2") == local


def test_a_zip_on_a_failing_store_is_not_damaged():
    with serve_hub({"owner/images": LAYOUTS["zip"]}) as hub:
        hub.server.slow_down("GET /signed/")
        with pytest.raises(StorageError, match="photos.zip: .*503"):
            find_source(ROOT, Columns())


def test_a_zip_on_the_hub_is_a_source(tmp_path):
    with serve_hub({"owner/images": LAYOUTS["zip"]}):
        assert [sample.key for sample in read(f"{ROOT}/photos.zip", tmp_path / "out")] == ["data/a.png"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_gated_data_set_of_each_layout_is_refused(layout):
    with serve_hub({"owner/images": LAYOUTS[layout]}) as hub:
        hub.gated = True
        settings = CurateSettings(source=ROOT)
        STEP.hash_overrides(settings, {})  # leaves the error to the check
        with pytest.raises(
            ConfigError, match="^source='hf.*': hf.* cannot be read: .*GatedRepoError.*HF_TOKEN"
        ) as error:
            check(settings)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "files",
    [{"a.png": IMAGE, "a.json": json.dumps({"hash": HASH}).encode()},
     {"a.png": IMAGE, "metadata.csv": f"file_name,hash,author\na.png,{HASH},someone\n".encode()},
     {"a.parquet": parquet_of(table_of(hash=HASH, author="someone", license="cc0"))},
     {"a.arrow": arrow_of(table_of(hash=HASH, author="someone", license="cc0"))},
     {"a.tar": tar_of([("a.png", IMAGE), ("a.json", json.dumps({"hash": HASH}).encode())])}],
)  # fmt: skip
def test_captions_are_joined_with_images_of_each_layout(tmp_path, files):
    (tmp_path / "captions.jsonl").write_text(json.dumps({"key": HASH, "caption": "joined"}) + "\n")
    columns, tables = Columns(caption_key="hash"), CaptionTables(source=str(tmp_path / "captions.jsonl"))
    source = write(tmp_path / "in", files)
    check(CurateSettings(source=source, columns=columns, captions=tables))
    (found,) = read(source, tmp_path / "out", columns)
    assert load_caption_table(tables).caption_of(found, columns) == "joined"


@pytest.mark.parametrize(
    "files", [{"a.parquet": parquet_of(table_of(text="one"))}, {"a.png": IMAGE, "metadata.csv": b"file_name\na.png\n"}]
)
def test_a_table_without_the_caption_key_is_refused(tmp_path, files):
    (tmp_path / "captions.jsonl").write_text(json.dumps({"key": HASH, "caption": "joined"}) + "\n")
    tables = CaptionTables(source=str(tmp_path / "captions.jsonl"))
    settings = CurateSettings(
        source=write(tmp_path / "in", files), columns=Columns(caption_key="hash"), captions=tables
    )
    with pytest.raises(ConfigError, match="^columns.caption_key='hash': .* has no such column"):
        check(settings)


def test_captions_are_joined_by_the_key_of_a_table(tmp_path):
    source = write(tmp_path / "in", {"a.parquet": parquet_of(table_of(key=HASH))})
    (found,) = read(source, tmp_path / "out", Columns(caption_key="key"))
    assert (found.key, found.record["key"]) == (HASH, HASH)
