"""One's own images: folders with captions or metadata, zips, data sets of Hugging Face; what is found and refused."""

import io
import json
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from own_sources import arrow_of, parquet_of
from random_sources import image_of

from pipelines.core import storage
from pipelines.core.config import ConfigError
from pipelines.data.curate import image_lists, source_files
from pipelines.data.curate.compact import flip
from pipelines.data.curate.config import CurateSettings, Encoding
from pipelines.data.curate.filters import Filters
from pipelines.data.curate.image_lists import LIST_ENDING, list_entries, read_list, write_lists
from pipelines.data.curate.samples import Columns, SampleKeys
from pipelines.data.curate.shard import best_bucket
from pipelines.data.curate.shard_reader import read_shard
from pipelines.data.curate.source_files import list_source_files, path_in_source
from pipelines.data.curate.sources import find_source
from pipelines.data.curate.step import STEP, check, filters_of, list_items
from pipelines.data.images import decode_image, encode_png

IMAGE = image_of(1, "PNG")


def write(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return str(folder)


def zip_of(files, path, **options):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, **options) as archive:
        for name, data in files.items():
            archive.writestr(name, data)


def read(source, out, columns=None):
    """Return {key: (caption, problem)} of all samples of a source."""
    settings = CurateSettings(source=str(source), columns=columns or Columns())
    items = list_items(settings, find_source(str(source), settings.columns), str(out))
    found = {}
    for place in items.values():
        key_of = SampleKeys("" if place.endswith(LIST_ENDING) else path_in_source(str(source), place))
        for sample in read_shard(place, settings.columns):
            found[key_of(sample.key)] = sample.caption.strip(), sample.problem
    return found


def test_captions_beside_images(tmp_path):
    files = {
        "a.png": IMAGE, "a.txt": b"one", "deep/b.PNG": IMAGE, "deep/b.caption": b"two", "c.jpg": IMAGE,
        "d.png": IMAGE, "d.jpg": IMAGE, "d.txt": b"both", "README.md": b"x", "notes.txt": b"x", ".e.png": IMAGE,
        "__MACOSX/a.png": b"x", "._a.png": b"x", "f.heic": b"x",
    }  # fmt: skip
    assert read(write(tmp_path / "in", files), tmp_path / "out") == {
        "a.png": ("one", ""), "deep/b.PNG": ("two", ""), "c.jpg": ("", ""), "d.jpg": ("both", ""),
        "d.png": ("both", ""), "f.heic": ("", "image format heic is not read"),
    }  # fmt: skip


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


def table(*captions):
    return pa.table({"image": [{"bytes": IMAGE, "path": "x.png"}] * len(captions), "text": list(captions)})


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


def test_names_that_look_like_an_address(tmp_path):
    files = {"wow!/a.png": IMAGE, "wow!/a.txt": b"one", "b.zip/c.png": IMAGE, "mymetadata.csv": b"x"}
    source = write(tmp_path / "in", files)
    assert read(source, tmp_path / "out") == {"wow!/a.png": ("one", ""), "b.zip/c.png": ("", "")}
    write(tmp_path / "in", {"d.ZIP!/e.png": IMAGE})
    with pytest.raises(ConfigError, match="d.ZIP!/e.png is in a folder whose name ends with .zip!; rename it"):
        find_source(source, Columns())


def test_zip_is_a_folder(tmp_path):
    (tmp_path / "in").mkdir()
    files = {"a/1.png": IMAGE, "a/1.txt": b"one", "t.parquet": parquet_of(table("two")), "__MACOSX/a/1.png": b"x"}
    zip_of(files, tmp_path / "in/photos.zip")
    wanted = {"a/1.png": ("one", ""), "t.parquet/0": ("two", "")}
    assert read(tmp_path / "in", tmp_path / "out") == {f"photos.zip/{key}": row for key, row in wanted.items()}
    assert read(tmp_path / "in/photos.zip", tmp_path / "out2") == wanted


def test_zip_on_a_bucket(s3, tmp_path):
    zip_of({"1.png": IMAGE, "1.txt": b"one"}, tmp_path / "photos.zip")
    storage.put_file(tmp_path / "photos.zip", f"{s3}/in/photos.zip")
    assert read(f"{s3}/in", tmp_path / "out") == {"photos.zip/1.png": ("one", "")}
    assert read(f"{s3}/in/photos.zip", tmp_path / "out2") == {"1.png": ("one", "")}


def test_zip_of_an_attacker(tmp_path, monkeypatch):
    monkeypatch.setattr(image_lists.SourceReader.read, "__defaults__", (1 << 20,))
    (tmp_path / "in").mkdir()
    path = tmp_path / "in/evil.zip"
    link = zipfile.ZipInfo("link.png")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../out.png", IMAGE)
        archive.writestr("/etc/out.png", IMAGE)
        archive.writestr("..\\out2.png", IMAGE)
        archive.writestr(link, "/etc/passwd")
        archive.writestr("bomb.png", bytes(64 << 20))
        archive.writestr("lies.png", bytes(64 << 20))
        archive.writestr("dense.png", IMAGE, zipfile.ZIP_LZMA)
        archive.writestr("good.png", IMAGE)
        archive.writestr("inner.zip", b"x")
    data = bytearray(path.read_bytes())
    for at in (data.find(b"lies.png") - 30 + 22, data.rfind(b"lies.png") - 46 + 24):
        data[at : at + 4] = (100).to_bytes(4, "little")  # its size, in both headers
    path.write_bytes(data)
    found = {key.removeprefix("evil.zip/"): problem for key, (_, problem) in read(tmp_path / "in", tmp_path).items()}
    assert found == {
        "../out.png": "unsafe path in zip", "/etc/out.png": "unsafe path in zip", "../out2.png": "unsafe path in zip",
        "link.png": "link or special file in zip", "bomb.png": "file too large", "lies.png": "damaged file in zip",
        "dense.png": "compression of zip is not read", "good.png": "", "inner.zip": "archive in zip is not read",
    }  # fmt: skip


def test_overlapping_files_of_a_zip(tmp_path):
    """As in zip bombs without nesting, whose entries share their data."""
    (tmp_path / "in").mkdir()
    path = tmp_path / "in/a.zip"
    zip_of({"a.png": IMAGE, "b.png": IMAGE, "c.png": IMAGE}, path)
    data = bytearray(path.read_bytes())
    entry = data.rfind(b"b.png") - 46
    data[entry + 42 : entry + 46] = bytes(4)  # b begins where a begins
    path.write_bytes(data)
    problems = [problem for _, problem in read(tmp_path / "in", tmp_path).values()]
    assert problems == ["overlapping files in zip"] * 2 + [""]


def test_later_file_of_a_path_in_a_zip(tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(tmp_path / "in/a.zip", "w") as archive:
        archive.writestr("a.png", b"old")
        archive.writestr("a.png", IMAGE)
    files = list_source_files(str(tmp_path / "in"))
    assert sorted(file.problem for file in files) == ["", source_files.REPLACED]


def test_lists_are_bounded(tmp_path):
    source = write(tmp_path / "in", {f"{number:04}.png": b"x" for number in range(600)})
    items = write_lists(find_source(source, Columns()), Columns(), str(tmp_path / "out"))
    sizes = [len(list(read_list(uri, Columns()))) for uri in items.values()]
    assert sizes == [256, 256, 88]
    assert list(items) == ["images/00000", "images/00001", "images/00002"]


def test_images_without_captions(tmp_path):
    source = write(tmp_path / "in", {"a.png": IMAGE})
    with pytest.raises(ConfigError, match="no image has a caption; .*filters.captions=false and run the caption step"):
        check(CurateSettings(source=source))
    check(CurateSettings(source=source, filters=Filters(captions=False)))
    pq.write_table(table("one").select(["image"]), tmp_path / "in/t.parquet")
    with pytest.raises(ConfigError, match="no image has a caption"):
        check(CurateSettings(source=source))


def test_thresholds_of_own_images_are_those_that_are_given(tmp_path):
    source = write(tmp_path / "in", {"a.png": IMAGE, "a.txt": b"one"})
    settings = CurateSettings(source=source, filters=Filters(min_side=64))
    filters = filters_of(settings, find_source(source, Columns()))
    assert (filters.min_aesthetic, filters.max_punsafe, filters.min_side, filters.captions) == (None, None, 64, True)
    # the same values mean something else if they are given, so the artifact has another ID
    assert STEP.hash_overrides(settings, {}) != STEP.hash_overrides(CurateSettings(source=source), {})
    (tmp_path / "in/00000.tar").write_bytes(bytes(1024))
    assert filters_of(settings, find_source(source, Columns())) == settings.filters
    assert STEP.hash_overrides(settings, {}) == {}


def test_best_bucket_of_one_aspect_ratio_enlarges_nothing():
    buckets = [(512, 512), (1024, 1024), (256, 256), (1024, 512)]
    assert best_bucket(1100, 1050, buckets) == (1024, 1024)
    assert best_bucket(1000, 1000, buckets) == (512, 512)
    assert best_bucket(100, 100, buckets) == (256, 256)
    assert best_bucket(400, 200, buckets) == (1024, 512)


def test_flipped_copy(make_images):
    image = decode_image(make_images(1)[0].image)
    row = {"key": "a", "image": encode_png(image), "caption": "one"}
    copy = flip(row, Encoding())
    mirrored = decode_image(copy["image"])
    assert (copy["key"], copy["caption"]) == ("a#flipped", "one")
    assert mirrored.getpixel((0, 5)) == image.getpixel((image.width - 1, 5)) != image.getpixel((0, 5))


def test_file_that_is_no_source(tmp_path):
    (tmp_path / "a.png").write_bytes(IMAGE)
    with pytest.raises(ConfigError, match="a.png': is not a folder"):
        list_source_files(str(tmp_path / "a.png"))
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.zip").write_bytes(io.BytesIO(b"no zip").getvalue())
    assert read(tmp_path / "in", tmp_path / "out") == {"a.zip": ("", "zip cannot be read")}
