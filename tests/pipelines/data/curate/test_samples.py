import json
from decimal import Decimal

import pytest

from pipelines.data.curate.samples import (
    Columns,
    SampleKeys,
    is_litter,
    key_of,
    make_sample,
    split_name,
    split_reference,
    text_of,
)


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("a/b.JPG", ("a/b", "jpg")), ("IMG 2.0.jpg", ("IMG 2.0", "jpg")), ("a.b/c", ("a.b/c", "")),
        (".png", (".png", "png")), ("a/", ("a/", "")),
    ],
)  # fmt: skip
def test_the_last_dot_begins_the_extension(path, parts):
    assert split_name(path) == parts


def test_references_are_endings_of_names():
    assert split_reference("a/b.source.PNG", ["source"]) == ("a/b", "source.png")
    assert split_reference("a/b.source.txt", ["source"]) == ("a/b.source", "txt")
    assert split_reference("a/source.png", ["source"]) == ("a/source", "png")


@pytest.mark.parametrize(
    ("value", "key"),
    [
        (12.0, "12"), (12.5, "12.5"), (Decimal("3"), "3"), (float("nan"), ""), (float("inf"), "inf"), (None, ""),
        (b"a\xff", "a\\xff"), ("a", "a"), ([1], ""), (0, "0"),
    ],
)  # fmt: skip
def test_keys_of_any_type(value, key):
    assert key_of(value) == key


def test_texts():
    assert text_of("a\ud800") == "a?"
    assert text_of(3) == ""


@pytest.mark.parametrize("path", ["._a.png", "a/.DS_Store", "__MACOSX/a.png", "Thumbs.db"])
def test_files_of_operating_systems(path):
    assert is_litter(path)
    assert not is_litter(path.replace("._", "").replace("__MACOSX/", "").replace(".DS_Store", "b").replace(".db", ""))


@pytest.mark.parametrize(
    ("texts", "caption", "problem"),
    [
        ({"txt": b"\xef\xbb\xbfone"}, "one", ""), ({"json": b'{"caption": "two"}'}, "two", ""),
        ({"txt": b"one", "json": b'{"caption": "two"}'}, "one", ""), ({}, "", ""),
        ({"txt": b"\xff"}, "", "caption is not UTF-8"), ({"json": b"{"}, "", "JSON cannot be read"),
        ({"json": b"[]"}, "", "JSON is not a mapping"), ({"json": b"[" * 100_000}, "", "JSON cannot be read"),
    ],
)  # fmt: skip
def test_captions_beside_an_image(texts, caption, problem):
    sample = make_sample("a", b"image", texts, Columns())
    assert (sample.caption, sample.problem) == (caption, problem)


def test_metadata_beside_an_image():
    record = {"caption": "one", "id": 7.0, "score": 3}
    sample = make_sample("a", b"image", {"json": json.dumps(record).encode()}, Columns(global_key="id"))
    assert (sample.record, sample.global_key) == (record, "7")


@pytest.mark.parametrize(
    ("shard", "is_class", "paths", "keys"),
    [
        ("part-1/00012.tar", False, ["000120003", "other"], ["part-1/000120003", "part-1/00012.tar/other"]),
        ("00012.tar", True, ["000120003"], ["00012.tar/000120003"]),
        ("", False, ["a/b.png", "a/b.png", "a/b.png"], ["a/b.png", "a/b.png#2", "a/b.png#3"]),
        ("x.parquet", False, [""], ["x.parquet"]),
    ],
)
def test_keys_over_a_source(shard, is_class, paths, keys):
    key_of_path = SampleKeys(shard, is_class)
    assert [key_of_path(path) for path in paths] == keys


def test_names_of_columns_are_listed_once():
    assert Columns(key="jpg", references=["jpg", "before"]).names.count("jpg") == 1
    assert Columns(references=["before"]).names[-1] == "before"
