"""Edits, an image and its reference images, in every layout: what is found, rejected, staged and written."""

import json
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from own_sources import parquet_of
from random_sources import image_of
from tars import tar_of

from pipelines.core import storage
from pipelines.core.config import ConfigError
from pipelines.data.curate.compact import FileWriter, plan_files
from pipelines.data.curate.config import CurateSettings, Encoding
from pipelines.data.curate.samples import Columns
from pipelines.data.curate.shard import SCHEMA, ShardCurator
from pipelines.data.curate.shard_reader import read_shard
from pipelines.data.curate.sources import find_source
from pipelines.data.curate.step import check, list_items
from pipelines.data.curate.tar_reader import TornSamples, read_tar
from pipelines.data.images import decode_image

A, B, C = (image_of(number, "PNG") for number in (1, 2, 3))
SOURCE = Columns(references=["source"])
CUT = B[: len(B) // 2]
MISSING = "reference image is missing"


def write(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return str(folder)


def items_of(source, out, columns):
    settings = CurateSettings(source=source, columns=columns)
    return list_items(settings, find_source(source, columns), str(out))


def read(source, out, columns=SOURCE):
    """Return {key: reference images, or the problem} of all samples, whose keys are unique."""
    samples = [sample for place in items_of(source, out, columns).values() for sample in read_shard(place, columns)]
    assert len({sample.key for sample in samples}) == len(samples)
    return {sample.key: sample.problem or sample.references for sample in samples}


def test_names_beside_images(tmp_path):
    files = {
        "a.png": A, "a.source.jpg": B, "a.txt": b"on pink", "plain.png": C, "plain.txt": b"a cat",
        "lost.source.png": B, "deep/v1.2.png": A, "deep/v1.2.source.png": C, "old.png": A, "old.source.tif": b"x",
    }  # fmt: skip
    assert read(write(tmp_path / "in", files), tmp_path / "out") == {
        "a.png": [B], "plain.png": [], "lost.source.png": "reference image without an image", "deep/v1.2.png": [C],
        "old.png": "reference image: image format tif is not read",
    }  # fmt: skip
    named = read(str(tmp_path / "in"), tmp_path / "out2", Columns())
    assert named["a.source.jpg"] == []
    assert len(named) == len([name for name in files if not name.endswith("txt")])


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_paths_in_metadata(tmp_path, kind):
    """Reference images are counted with their pair, also if they belong to several, and may be images themselves."""
    rows = [
        {"file_name": "out/a.png", "text": "on pink", "edit_image": "in/b.png"},
        {"file_name": "out/c.png", "text": "on white", "edit_image": "in/b.png"},
        {"file_name": "out/d.png", "text": "on black", "edit_image": "out/a.png"},
        {"file_name": "out/e.png", "text": "a cat", "edit_image": ""},
        {"file_name": "out/f.png", "text": "on grey", "edit_image": "in/gone.png"},
        {"file_name": "out/g.png", "text": "on grey", "edit_image": "../../g.png"},
    ]
    if kind == "csv":
        lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
        data = "\n".join(lines).encode()
    else:
        data = "\n".join(map(json.dumps, rows)).encode()
    files = {f"metadata.{kind}": parquet_of(pa.Table.from_pylist(rows)) if kind == "parquet" else data}
    files |= {f"out/{name}.png": A for name in "acdefg"} | {"in/b.png": B, "in/unused.png": C}
    assert read(write(tmp_path / "in", files), tmp_path / "out", Columns(references=["edit_image"])) == {
        "out/a.png": [B], "out/c.png": [B], "out/d.png": [A], "out/e.png": [], "out/f.png": MISSING,
        "out/g.png": MISSING, "in/unused.png": "no row in metadata",
    }  # fmt: skip


def test_several_references_of_a_row(tmp_path):
    rows = [{"image": "a.png", "prompt": "both", "edit_image": ["b.png", "c.png"]}]
    files = {"metadata.jsonl": json.dumps(rows[0]).encode(), "a.png": A, "b.png": B, "c.png": C}
    source = write(tmp_path / "in", files)
    assert read(source, tmp_path / "out", Columns(references=["edit_image"])) == {"a.png": [B, C]}
    files = {"metadata.csv": b"image,prompt,first,second\na.png,both,c.png,b.png\n", "a.png": A, "b.png": B, "c.png": C}
    source = write(tmp_path / "two", files)
    assert read(source, tmp_path / "out2", Columns(references=["first", "second"])) == {"a.png": [C, B]}


def test_columns_of_bytes(tmp_path):
    """As an image of Hugging Face `datasets`, a list, or bytes; the only other column of text is the caption."""
    table = pa.Table.from_pylist(
        [
            {"target": {"bytes": A, "path": "a"}, "say": "on pink", "source": {"bytes": B, "path": "b"}},
            {"target": {"bytes": A, "path": "a"}, "say": "a cat", "source": None},
            {"target": {"bytes": A, "path": "a"}, "say": "on grey", "source": {"bytes": None, "path": "b"}},
        ]
    )
    many = pa.table({"target": [A], "say": ["both"], "source": pa.array([[B, C]], pa.list_(pa.binary()))})
    plain = pa.table({"target": [C], "say": ["a dog"]})
    files = {"a.parquet": parquet_of(table), "b/b.parquet": parquet_of(many), "c/c.parquet": parquet_of(plain)}
    columns = Columns(image="target", references=["source"])
    source, found = write(tmp_path / "in", files), {}
    for name, place in items_of(source, tmp_path / "out", columns).items():
        found[name] = [(sample.caption, sample.problem or sample.references) for sample in read_shard(place, columns)]
    assert found == {
        "a": [("on pink", [B]), ("a cat", []), ("", MISSING)], "b-b": [("both", [B, C])], "c-c": [("a dog", [])]
    }  # fmt: skip


def test_members_of_a_tar(tmp_path):
    members = [
        ("a.jpg", A), ("a.source.jpg", B), ("a.txt", b"on pink"),
        ("b.source.0.png", B), ("b.source.1.webp", C), ("b.jpg", A), ("b.txt", b"both"),
        ("c.jpg", C), ("c.txt", b"a cat"),
        ("d.source.jpg", B), ("d.txt", b"lost"),
        ("e.jpg", A), ("e.source.jpg", B), ("e.source.png", C), ("e.txt", b"twice"),
    ]  # fmt: skip
    (tmp_path / "0.tar").write_bytes(tar_of(members))
    samples = list(read_tar(str(tmp_path / "0.tar"), Columns(references=["source", "source.0", "source.1"])))
    assert {s.key: s.problem or s.references for s in samples} == {
        "a": [B], "b": [B, C], "c": [], "d": "no image of its key",
        "e": "reference image: another one has its name",
    }  # fmt: skip


def test_references_that_are_not_adjacent_in_a_tar_do_not_make_plain_images(tmp_path):
    members = [("a.jpg", A), ("b.jpg", A), ("b.source.jpg", B), ("a.source.jpg", B)]
    (tmp_path / "0.tar").write_bytes(tar_of(members))
    with pytest.raises(TornSamples) as error:
        list(read_tar(str(tmp_path / "0.tar"), SOURCE))
    again = list(read_tar(str(tmp_path / "0.tar"), SOURCE, error.value.keys))
    assert {s.key: s.problem or s.references for s in again} == {
        "a": "members of a key are not adjacent in tar", "b": [B],
    }  # fmt: skip


def curate(source, out, near_bits=3, **options):
    """Return the rows by file, and the rejected (key, reason)."""
    settings = CurateSettings(
        source=source, columns=SOURCE, buckets=[(16, 16), (32, 16)], near_duplicate_bits=near_bits, **options
    )
    check(settings)
    settings = settings.model_copy(update={"filters": settings.filters.for_own_images()})
    items = list_items(settings, find_source(source, settings.columns), str(out / ".staged/lists"))
    for name, place in items.items():
        ShardCurator(settings, str(out))(json.dumps([name, place, None]))
    plan = plan_files(str(out), list(items), near_bits, 100)
    for item in plan["files"].items():
        FileWriter(str(out), settings.encoding if settings.horizontal_flips else None)(json.dumps(item))
    rejected = [
        row for f in storage.list_files(str(out / "rejected"), ".parquet") for row in pq.read_table(f).to_pylist()
    ]
    files = {f.removeprefix(f"{out}/"): f for s in ("train", "held_out") for f in storage.list_files(str(out / s), "t")}
    return files, [(row["key"], row["reason"]) for row in rejected]


def test_edits_are_files_of_their_own_and_keep_all_edits_of_an_image(tmp_path):
    """Pairs with one image but several sources stay; equal ones, and those with a damaged source, do not."""
    files = {
        "a.png": A, "a.source.png": B, "b.png": A, "b.source.png": C, "c.png": A, "c.source.png": B, "d.png": A,
        "e.png": C, "e.source.png": CUT,
    }  # fmt: skip
    texts = {f"{name}.txt": f"on {name}".encode() for name in "abcde"}
    found, rejected = curate(write(tmp_path / "in", files | texts), tmp_path / "out", held_out_every=10**6)
    assert sorted(found) == ["train/16x16+1-00000.parquet", "train/16x16-00000.parquet"]
    assert pq.read_schema(found["train/16x16-00000.parquet"]) == SCHEMA
    rows = pq.read_table(found["train/16x16+1-00000.parquet"]).to_pylist()
    assert [(row["key"], row["caption"], row["bucket"]) for row in rows] == [
        ("a.png", "on a", "16x16"), ("b.png", "on b", "16x16")
    ]  # fmt: skip
    assert [len(row["references"]) for row in rows] == [1, 1]
    assert all(decode_image(data).size == (16, 16) for row in rows for data in (row["image"], *row["references"]))
    assert Counter(rejected) == {
        ("c.png", "duplicate"): 1, ("e.png", "reference image: truncated or corrupt"): 1
    }  # fmt: skip


def test_the_references_are_mirrored_with_the_image(tmp_path):
    files = {"a.png": A, "a.source.png": B, "a.txt": b"on pink"}
    out = tmp_path / "out"
    options = {"held_out_every": 10**6, "horizontal_flips": True, "encoding": Encoding()}
    found, _ = curate(write(tmp_path / "in", files), out, **options)
    row, mirrored = pq.read_table(found["train/16x16+1-00000.parquet"]).to_pylist()
    for one, other in ((row["image"], mirrored["image"]), (row["references"][0], mirrored["references"][0])):
        flipped = decode_image(one).transpose(0)
        assert flipped.tobytes() == decode_image(other).tobytes() != decode_image(one).tobytes()


def test_references_that_do_not_exist_are_refused(tmp_path):
    source = write(tmp_path / "in", {"a.png": A, "a.txt": b"a cat", "a.sourec.png": B, "a.sourec.txt": b"x"})
    with pytest.raises(
        ConfigError, match=r"columns.references=\[source\]: no image has one; name the columns"
    ) as error:
        check(CurateSettings(source=source, columns=SOURCE))
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="columns.references: labels=folder has no edits"):
        check(CurateSettings(source=source, columns=SOURCE, labels="folder"))
