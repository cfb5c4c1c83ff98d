import json
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.core import storage
from pipelines.data.curate.compact import FileWriter, _even_files, _length, flip, plan_files
from pipelines.data.curate.config import CurateSettings, Encoding
from pipelines.data.curate.shard import ShardCurator
from pipelines.data.images import decode_image, encode_png
from pipelines.toy.data import write_img2dataset


@pytest.mark.parametrize("rows_per_file", [1, 3, 7, 10, 100])
def test_even_files(rows_per_file):
    segments = [("a", 0, 10, [0, 1, 9]), ("b", 0, 1, []), ("c", 0, 5, [0, 1, 2, 3, 4]), ("d", 0, 6, [2])]
    files = list(_even_files(segments, rows_per_file))
    lengths = [sum(map(_length, f)) for f in files]
    assert sum(lengths) == 13
    assert len(files) == -(-13 // rows_per_file)
    assert max(lengths) <= rows_per_file
    assert max(lengths) - min(lengths) <= 1
    rows = [(u, r) for f in files for u, a, b, out in f for r in range(a, b) if r not in out]
    assert rows == [(u, r) for u, a, b, out in segments for r in range(a, b) if r not in out]


def test_no_rows_no_files():
    assert list(_even_files([("a", 0, 2, [0, 1])], 10)) == []


@pytest.fixture
def staged(tmp_path, make_images):
    """Three shards of 20 pictures in two folders, one picture twice, staged."""
    pictures = make_images(60)
    write_img2dataset(iter([*pictures[:30], pictures[3]]), tmp_path / "in" / "a", 16)
    write_img2dataset(iter(pictures[30:]), tmp_path / "in" / "b", 40)
    settings = CurateSettings(source=str(tmp_path / "in"), held_out_every=4)
    curator = ShardCurator(settings, str(tmp_path / "out"))
    names = {"a-00000": "a/00000.tar", "a-00001": "a/00001.tar", "b-00000": "b/00000.tar"}
    for name, shard in names.items():
        curator(json.dumps([name, f"{tmp_path}/in/{shard}", None]))
    return str(tmp_path / "out"), list(names)


def test_plan_and_files_hold_every_image_once(staged):
    folder, names = staged
    plan = plan_files(folder, names, 3, 10)
    assert plan["dropped"] == {"duplicate": 1}
    assert sum(plan["kept"].values()) == 60
    for name, segments in plan["files"].items():
        FileWriter(folder)(json.dumps([name, segments]))
    files = [f for split in ("train", "held_out") for f in storage.list_files(storage.join(folder, split))]
    tables = [pq.read_table(f) for f in files]
    rows = pa.concat_tables(tables)
    assert Counter(rows["caption"].to_pylist()) == Counter(f"picture {i}" for i in range(60))
    assert len(set(rows["key"].to_pylist())) == 60
    assert {key.partition("/")[0] for key in rows["key"].to_pylist()} == {"a", "b"}
    lengths = [len(t) for f, t in zip(files, tables, strict=True) if "/train/" in f]
    assert max(lengths) <= 10
    assert max(lengths) - min(lengths) <= 1
    (dropped,) = pq.read_table(storage.join(folder, "rejected", "duplicates", "00000.parquet")).to_pylist()
    assert dropped == {"key": "a/000010014", "reason": "duplicate", "duplicate_of": "a/000000003"}


def test_plan_is_made_once(staged):
    folder, names = staged
    plan = plan_files(folder, names, 3, 10)
    storage.delete_folder(storage.join(folder, ".staged", "index"))
    assert plan_files(folder, names, 3, 10) == json.loads(json.dumps(plan))


def test_shards_without_images(tmp_path):
    plan = plan_files(str(tmp_path / "out"), ["a", "b"], 3, 10)
    assert plan == {"files": {}, "dropped": {}, "kept": {}}


def test_flipped_copy(make_images):
    image = decode_image(make_images(1)[0].image)
    row = {"key": "a", "image": encode_png(image), "caption": "one"}
    copy = flip(row, Encoding())
    mirrored = decode_image(copy["image"])
    assert (copy["key"], copy["caption"]) == ("a#flipped", "one")
    assert mirrored.getpixel((0, 5)) == image.getpixel((image.width - 1, 5)) != image.getpixel((0, 5))
