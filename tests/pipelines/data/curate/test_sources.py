"""Which files of a source are shards or classes, and what is refused before anything starts."""

import os

import pytest

from pipelines.core.config import ConfigError
from pipelines.data.curate.samples import Columns, SampleKeys
from pipelines.data.curate.source_files import path_in_source
from pipelines.data.curate.sources import find_source, list_classes


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def list_shards(source):
    return find_source(source, Columns()).shards


def test_shards_are_tars_and_parquet_without_metadata(tmp_path):
    touch(tmp_path, "1/00000.tar", "1/00000.parquet", "1/00000_stats.json", "2/00000.tar.gz", "2/00001.parquet")
    touch(tmp_path, "3.TGZ")
    found = list_shards(str(tmp_path))
    assert {n: os.path.relpath(u, tmp_path) for n, u in found.items()} == {
        "1-00000": "1/00000.tar", "2-00000": "2/00000.tar.gz", "2-00001": "2/00001.parquet", "3": "3.TGZ"
    }  # fmt: skip
    touch(tmp_path, "1-00000.tar")
    with pytest.raises(ConfigError, match="two shards have one name, .*1-00000.tar and .*1/00000.tar; rename one"):
        list_shards(str(tmp_path))


def test_no_shards(tmp_path):
    touch(tmp_path, "notes.txt")
    with pytest.raises(ConfigError, match="no images there"):
        list_shards(str(tmp_path))
    with pytest.raises(ConfigError, match="notes.txt': is not a folder"):
        list_shards(str(tmp_path / "notes.txt"))


@pytest.mark.parametrize("name", ["a.7z", "part/a.tar.zst", "a.tar.xz", "a.rar", "a.tfrecord"])
def test_images_in_other_forms_are_refused(tmp_path, name):
    touch(tmp_path, "00000.tar", name, "z/" + name, "notes.txt", "embeddings.npy", "._a.zip")
    message = f"{name} and 1 more hold images in a form that curate does not read; it reads images, .tar"
    with pytest.raises(ConfigError, match=message):
        list_shards(str(tmp_path))


@pytest.mark.parametrize("name", ["a.jpg", "n3.zip", "n3.parquet", "n01/more.tar", "n01/x.parquet"])
def test_images_of_no_class_are_refused(tmp_path, name):
    touch(tmp_path, "n01/a.JPEG", "n02.tar", "n02.parquet", "n03/b.tif", "LICENSE", "n01/notes.txt")
    assert list(list_classes(str(tmp_path))) == ["n01", "n02", "n03"]
    touch(tmp_path, name)
    with pytest.raises(ConfigError, match=f"{name} hold images of no class"):
        list_classes(str(tmp_path))


@pytest.mark.parametrize("other", ["n01.tar", "n01.tar.gz"])
def test_two_classes_of_one_name_are_refused(tmp_path, other):
    touch(tmp_path, "n01.tgz", other)
    with pytest.raises(ConfigError, match="two classes have one name"):
        list_classes(str(tmp_path))


@pytest.mark.parametrize(
    ("shard", "path", "key"),
    [
        ("00012.tar", "000120003", "000120003"),  # img2dataset's own keys stay as they are
        ("part-1/00012.parquet", "000120003", "part-1/000120003"),
        ("00012.tar", "000130003", "00012.tar/000130003"),
        ("00012.tar", "00012", "00012.tar/00012"),
        ("a/00012.tar", "cat/000120003", "a/00012.tar/cat/000120003"),
        ("a/cats.tar.gz", "0001", "a/cats.tar.gz/0001"),
        ("100000.tar", "1000000003", "100000.tar/1000000003"),
        ("a/00012.tar", "", "a/00012.tar"),
    ],
)
def test_key_is_the_shard_and_the_path_in_it(shard, path, key):
    assert SampleKeys(shard)(path) == key


def test_keys_of_a_class_begin_with_it():
    assert SampleKeys("n01", is_class=True)("x/n01_0") == "n01/x/n01_0"
    assert SampleKeys("00012", is_class=True)("000120003") == "00012/000120003"


def test_path_that_occurs_again_is_another_key():
    keys = SampleKeys("cats.tar")
    assert [keys(path) for path in ("a", "a", "b", "a", "a#2", "a#2")] == [
        "cats.tar/a", "cats.tar/a#2", "cats.tar/b", "cats.tar/a#3", "cats.tar/a#2#2", "cats.tar/a#2#3"
    ]  # fmt: skip


def test_paths_below_a_source():
    assert path_in_source("s3://bucket/crawl/", "s3://bucket/crawl/part-1/00000.tar") == "part-1/00000.tar"
