"""Pictures with classes: from a column, a folder or a tar for each class."""

import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.core import storage
from pipelines.core.config import ConfigError
from pipelines.data.curate.config import CurateSettings
from pipelines.data.curate.filters import Filters
from pipelines.data.curate.report import Histograms
from pipelines.data.curate.samples import Columns, Sample
from pipelines.data.curate.shard import ShardCurator, staged_file
from pipelines.data.curate.shard_reader import read_class, read_shard
from pipelines.data.curate.sources import list_classes
from pipelines.data.curate.step import check
from pipelines.data.datasets import read_rows
from pipelines.data.images import decode_image

OPEN = Filters(
    min_aesthetic=None, max_punsafe=None, max_pwatermark=None, min_similarity=None, min_side=1, max_aspect=100,
    captions=False,
)  # fmt: skip


def settings(source, **changes):
    options = {"labels": "folder", "crop": "adm", "filters": OPEN, "held_out_every": 10**6, **changes}
    return CurateSettings(source=str(source), **options)


@pytest.fixture
def imagenet(tmp_path, make_images):
    """Two classes as folders, one as a tar of bare pictures, and what does not belong there."""
    root = tmp_path / "train"
    pictures = [picture.image for picture in make_images(7)]
    for name, some in (("n02", pictures[:3]), ("n01", pictures[3:5])):
        (root / name).mkdir(parents=True)
        for i, data in enumerate(some):
            (root / name / f"{name}_{i}.JPEG").write_bytes(data)
    (root / "n02" / "notes.txt").write_text("no picture")
    (root / "n02" / "broken.JPEG").write_bytes(pictures[0][:100])
    (root / "LICENSE").write_text("no class")
    with tarfile.open(root / "n03.tar", "w") as tar:
        for name, data in (("n03_0.JPEG", pictures[5]), ("../n03_1.JPEG", b""), ("n03_2.JPEG", pictures[6])):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return root


def curated(settings, out, name, place, label):
    summary = ShardCurator(settings, str(out))(json.dumps([name, place, label]))
    uri = staged_file(str(out), name, "train/64x64")
    groups = read_rows(uri, ["key", "label", "image"])
    return summary, [row for rows in groups for row in zip(*rows.values(), strict=True)]


def test_classes_are_numbered_in_the_order_of_their_names(imagenet):
    assert list(list_classes(str(imagenet))) == ["n01", "n02", "n03"]
    check(settings(imagenet))
    with pytest.raises(ConfigError, match="needs a folder of images, or a tar, for each class"):
        check(settings(imagenet / "n01"))


def test_images_get_their_class_label_and_others_are_rejected(imagenet, tmp_path):
    found = list_classes(str(imagenet))
    _, rows = curated(settings(imagenet), tmp_path / "a", "n01", found["n01"], 0)
    assert {(key, label) for key, label, _ in rows} == {("n01/n01_0", 0), ("n01/n01_1", 0)}
    assert all(decode_image(image).size == (64, 64) for *_, image in rows)
    summary, rows = curated(settings(imagenet), tmp_path / "b", "n02", found["n02"], 1)
    assert len(rows) == 3
    assert sum(summary["rejected"].values()) == 1
    summary, rows = curated(settings(imagenet), tmp_path / "c", "n03", found["n03"], 2)
    assert {(key, label) for key, label, _ in rows} == {("n03/n03_0", 2), ("n03/n03_2", 2)}
    assert summary["rejected"] == {"unsafe path in tar": 1}


def test_classes_on_a_bucket(s3, imagenet):
    storage.put_folder(imagenet, f"{s3}/train")
    assert list(list_classes(f"{s3}/train")) == ["n01", "n02", "n03"]
    there = {sample.key: sample.image for sample in read_class(f"{s3}/train/n01")}
    here = {sample.key: sample.image for sample in read_class(str(imagenet / "n01"))}
    assert there == here
    assert len(here) == 2


def test_labels_of_a_column_as_the_hub_has_them(tmp_path, make_images):
    """A struct of bytes and path, no keys, no captions; a label that is none is a reason."""
    labels = [3, 1, None, -1]
    pictures = [{"bytes": p.image, "path": "x.jpg"} for p in make_images(4)]
    pq.write_table(pa.table({"image": pictures, "label": labels}), tmp_path / "train-00000.parquet")
    columns = Columns(key="", caption="", image="image", label="label")
    found = settings(tmp_path, labels="column", columns=columns)
    check(found)
    assert [s.key for s in read_shard(str(tmp_path / "train-00000.parquet"), columns)] == ["0", "1", "2", "3"]
    place = str(tmp_path / "train-00000.parquet")
    summary, rows = curated(found, tmp_path / "out", "train-00000", place, None)
    assert [(key, label) for key, label, _ in rows] == [("train-00000.parquet/0", 3), ("train-00000.parquet/1", 1)]
    assert summary["rejected"] == {"no label": 2}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": "column"}, "labels='column', columns.label='': one needs the other"),
        ({"labels": "", "columns": Columns(label="y")}, "labels='', columns.label='y': one needs the other"),
        ({"buckets": [(64, 32)]}, "crop='adm': makes squares, but buckets has 64x32"),
    ],
)
def test_settings_that_do_not_go_together(imagenet, changes, message):
    with pytest.raises(ConfigError, match=message):
        check(settings(imagenet, **changes))


def test_a_column_of_labels_that_is_not_there_is_named(tmp_path, make_images):
    table = pa.table({"key": ["a"], "jpg": [make_images(1)[0].image], "caption": ["b"]})
    pq.write_table(table, tmp_path / "00000.parquet")
    with pytest.raises(ConfigError, match="columns.label='y': .* has no such column; it has key, jpg, caption"):
        check(settings(tmp_path, labels="column", columns=Columns(label="y")))


def test_an_image_without_a_class_has_none(tmp_path, make_images):
    curator = ShardCurator(CurateSettings(source="data", filters=OPEN), str(tmp_path))
    row, _ = curator.curate(Sample("k", make_images(1)[0].image, "c", {}), Histograms())
    assert row["label"] is None
    assert Image.open(io.BytesIO(row["image"])).size == (64, 64)
