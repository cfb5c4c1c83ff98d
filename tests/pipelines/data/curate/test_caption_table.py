"""Captions joined with images by a key: the right one for each image, or a counted reason."""

import gzip
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.core.config import ConfigError
from pipelines.data.curate.caption_table import check_caption_tables, load_caption_table
from pipelines.data.curate.config import CaptionTables, CurateSettings
from pipelines.data.curate.filters import Filters, Rejected
from pipelines.data.curate.report import Histograms
from pipelines.data.curate.samples import Columns, Sample
from pipelines.data.curate.shard import ShardCurator
from pipelines.data.curate.step import check
from pipelines.toy.data import write_img2dataset

COLUMNS = Columns(caption_key="image_hash")


def json_lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def write_captions(folder, captions):
    """As they are published: captions in parquet files, the keys of the same rows in one file of JSON lines."""
    (folder / "data").mkdir(parents=True)
    half = len(captions) // 2
    for number, part in enumerate((list(captions.values())[:half], list(captions.values())[half:])):
        pq.write_table(pa.table({"id": range(len(part)), "prompt": part}), folder / "data" / f"{number:05d}.parquet")
    mapping = json_lines({"image_hash": key, "n": number} for number, key in enumerate(captions))
    (folder / "mapping.jsonl.gz").write_bytes(gzip.compress(mapping))
    return CaptionTables(source=str(folder), keys=str(folder / "mapping.jsonl.gz"), caption="prompt", key="image_hash")


def find(table, key):
    return table.caption_of(Sample("key", record={"image_hash": key}), COLUMNS)


def test_each_key_has_its_caption(tmp_path):
    generator = random.Random(0)
    captions = {generator.randbytes(8).hex(): f"caption {i}" for i in range(501)}
    tables = write_captions(tmp_path, captions)
    check_caption_tables(tables)
    table = load_caption_table(tables)
    assert {key: find(table, key) for key in captions} == captions


def test_keys_and_captions_in_one_table(tmp_path):
    rows = [
        {"key": "2000-01-01", "caption": "one"}, {"caption": "two"}, {"key": "c", "caption": None},
        {"key": "a", "caption": "first"}, {"key": "a", "caption": "last"},
    ]  # fmt: skip
    (tmp_path / "captions.jsonl").write_bytes(json_lines(rows))
    pq.write_table(pa.table({"key": [7, None], "caption": ["seven", "x"]}), tmp_path / "more.parquet")
    table = load_caption_table(CaptionTables(source=str(tmp_path)))
    assert [find(table, key) for key in ("2000-01-01", "a", 7)] == ["one", "last", "seven"]


@pytest.mark.parametrize(
    ("record", "reason"),
    [({}, "no caption key"), ({"image_hash": None}, "no caption key"), ({"image_hash": ""}, "no caption key"),
     ({"image_hash": "0"}, "no caption of its key"), ({"image_hash": "b"}, "no caption of its key"),
     ({"image_hash": "z"}, "no caption of its key"), ({"image_hash": "empty"}, "empty caption"),
     ({"image_hash": "null"}, "empty caption")],
)  # fmt: skip
def test_an_image_without_a_caption_is_rejected(tmp_path, make_images, record, reason):
    (tmp_path / "captions.jsonl").write_bytes(
        json_lines(
            {"key": key, "caption": text} for key, text in (("a", "A"), ("c", " C\n"), ("empty", " "), ("null", None))
        )
    )
    tables = CaptionTables(source=str(tmp_path))
    filters = Filters(captions=False)  # which does not make up for a caption
    settings = CurateSettings(source="data", columns=COLUMNS, captions=tables, filters=filters)
    curator = ShardCurator(settings, str(tmp_path / "out"), load_caption_table(tables))
    scores = {"aesthetic": 6.0, "punsafe": 0.1, "pwatermark": 0.1, "similarity": 0.3}
    image = make_images(1)[0].image
    row, _ = curator.curate(Sample("key", image, "of the source", {**scores, "image_hash": "c"}), Histograms())
    assert row["caption"] == "C"
    with pytest.raises(Rejected, match=f"^{reason}$"):
        curator.curate(Sample("key", image, "of the source", {**scores, **record}), Histograms())


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"caption": "text"}, "captions.source: .*00000.parquet has no column 'text'; it has id, prompt"),
     ({"key": "sha256"}, "captions.keys: .*mapping.jsonl.gz has no column 'sha256'"),
     ({"keys": "absent.jsonl"}, "captions.keys: .*absent.jsonl cannot be read"),
     ({"keys": "damaged.jsonl.gz"}, "captions.keys: .*damaged.jsonl.gz cannot be read"),
     ({"keys": "damaged.jsonl"}, "captions.keys: .*damaged.jsonl cannot be read"),
     ({"source": "damaged.parquet"}, "captions.source: .*damaged.parquet cannot be read"),
     ({"source": "empty"}, "captions.source='empty': no tables there; allowed: .parquet, .jsonl, .jsonl.gz"),
     ({"keys": "empty"}, "captions.keys='empty': no tables there")],
)  # fmt: skip
def test_wrong_tables_are_refused_before_anything_starts(
    tmp_path, monkeypatch, make_shards, make_images, changes, message
):
    monkeypatch.chdir(tmp_path)
    tables = write_captions(tmp_path / "captions", {"a": "A", "b": "B"}).model_copy(update=changes)
    (tmp_path / "empty").mkdir()
    for name in ("damaged.jsonl.gz", "damaged.jsonl", "damaged.parquet"):
        (tmp_path / name).write_bytes(b"\x1f\x8bno table" if name.endswith(".gz") else b"no table")
    settings = CurateSettings(source=str(make_shards(make_images(3))), columns=COLUMNS, captions=tables)
    with pytest.raises(ConfigError, match=f"^{message}"):
        check(settings)


def test_other_numbers_of_captions_and_keys_are_refused(tmp_path):
    tables = write_captions(tmp_path, {"a": "A", "b": "B", "c": "C"})
    (tmp_path / "mapping.jsonl.gz").write_bytes(gzip.compress(json_lines([{"image_hash": "a"}, {"image_hash": "b"}])))
    with pytest.raises(ConfigError, match="^captions.keys=.*: 2 rows, but captions.source=.* has 3; they must have"):
        load_caption_table(tables)


def test_settings_that_need_each_other(tmp_path, make_images):
    write_img2dataset(iter(make_images(3)), tmp_path / "shards")
    source, tables = str(tmp_path / "shards"), CaptionTables(source="captions")
    for settings in (
        CurateSettings(source=source, columns=COLUMNS), CurateSettings(source=source, captions=tables),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match="^columns.caption_key='.*', captions=.*: one needs the other"):
            check(settings)
    with pytest.raises(ConfigError, match="^captions: labels=folder has no columns"):
        check(CurateSettings(source=source, columns=COLUMNS, captions=tables, labels="folder"))
