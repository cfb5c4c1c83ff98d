import io
import json
import subprocess
import sys
import tarfile
from collections import Counter

import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.toy.data import (
    BACKGROUNDS,
    EMOJI,
    PHOTOGRAPHS,
    DemoImage,
    _emoji_edits,
    _emoji_images,
    _faulty_images,
    _photo_images,
    emoji_caption,
    emoji_stems,
    ground_pairs,
    render_emoji,
    write_img2dataset,
)

COLUMNS = {  # what img2dataset writes for LAION, with LAION's own columns kept
    "key", "caption", "url", "status", "error_message", "width", "height", "original_width", "original_height",
    "sha256", "aesthetic", "punsafe", "pwatermark", "similarity", "label",
}  # fmt: skip


def test_captions_come_from_unicode_names():
    assert emoji_caption("1F431") == "cat face"
    assert emoji_caption("1F98A") == "fox face"


def test_every_emoji_of_the_ranges_has_a_file_and_a_name_of_its_own():
    stems = emoji_stems()
    assert len(stems) == sum(map(len, EMOJI)) == len(set(map(emoji_caption, stems)))


def test_every_emoji_lies_on_every_ground_and_its_captions_name_it():
    pictures = _emoji_images("1F431", 0)
    grounds = [p.caption.removeprefix("an emoji of cat face on ") for p in pictures]
    assert sorted(grounds) == sorted(BACKGROUNDS)
    for picture, ground in zip(pictures, grounds, strict=True):
        image = Image.open(io.BytesIO(picture.image))
        assert image.format == "JPEG"
        assert image.size == (128, 128)
        wanted = bytes.fromhex(BACKGROUNDS[ground].removeprefix("#"))
        assert max(abs(a - b) for a, b in zip(image.getpixel((1, 1)), wanted, strict=True)) < 8


def test_an_edit_has_one_emoji_on_two_grounds():
    pairs = _emoji_edits("1F431", 5, 0)
    for pair, (before, asked) in zip(pairs, ground_pairs("1F431", 0), strict=False):
        assert pair.caption == f"on {asked}"
        assert before != asked
        assert (pair.source, pair.image) == tuple(render_emoji("1F431", ground) for ground in (before, asked))
    assert len({(pair.source, pair.image) for pair in pairs}) == 5
    every = ground_pairs("1F431", 0)
    assert len(set(every)) == len(every) == len(BACKGROUNDS) * (len(BACKGROUNDS) - 1)
    assert every == ground_pairs("1F431", 0) != ground_pairs("1F431", 1)


@pytest.mark.parametrize("name", ["camera.png", "china.jpg"])  # one package each
def test_photographs_are_cropped(name):
    pictures = _photo_images(name, 6, 0)
    assert len({p.image for p in pictures}) == 6
    for picture in pictures:
        assert picture.caption.startswith(f"a photo of {PHOTOGRAPHS[name]}, ")
        assert picture.caption.endswith(" view")
        width, height = Image.open(io.BytesIO(picture.image)).size
        assert width == height
        assert 64 <= width <= 160


def test_same_seed_same_images():
    assert _emoji_images("1F680", 0) == _emoji_images("1F680", 0) != _emoji_images("1F680", 1)
    assert _photo_images("moon.png", 2, 0) == _photo_images("moon.png", 2, 0) != _photo_images("moon.png", 2, 1)


def test_each_faulty_row_has_its_own_fault():
    """What each is rejected for is held by test_curate; here, that none is given twice."""
    pictures = _faulty_images()
    assert len({p.caption for p in pictures}) == len(pictures) == 13
    assert sum(p.image is None for p in pictures) == 1
    assert sum(p.aesthetic != p.aesthetic for p in pictures) == 1


@pytest.fixture
def folder(make_shards, make_images):
    rows = [
        *make_images(5),
        DemoImage("never arrived", None, 6.0),
        DemoImage("drawn", b"\x89PNG", 6.0, extension="png"),
    ]
    return make_shards(rows, shard_size=4)


def test_layout_is_img2datasets(folder):
    names = ["00000.parquet", "00000.tar", "00000_stats.json", "00001.parquet", "00001.tar", "00001_stats.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert json.loads((folder / "00001_stats.json").read_text()) == {"count": 3, "successes": 2}
    with tarfile.open(folder / "00001.tar") as tar:
        assert [m.name for m in tar] == [
            "000010000.jpg", "000010000.txt", "000010000.json", "000010002.png", "000010002.txt", "000010002.json",
        ]  # fmt: skip
    with tarfile.open(folder / "00000.tar") as tar:
        assert tar.getnames()[-1] == "../../outside.jpg"


def test_records_agree_with_the_parquet(folder):
    table = pq.read_table(folder / "00001.parquet")
    assert set(table.column_names) == COLUMNS
    rows = {row["key"]: row for row in table.to_pylist()}
    assert Counter(row["status"] for row in rows.values()) == {"success": 2, "failed_to_download": 1}
    lost = rows["000010001"]
    assert (lost["sha256"], lost["width"], lost["error_message"]) == (None, None, "404")
    with tarfile.open(folder / "00001.tar") as tar:
        record = json.loads(tar.extractfile("000010000.json").read())
        assert record == rows["000010000"]
        assert tar.extractfile("000010000.txt").read().decode() == record["caption"] == "picture 4"
        image = Image.open(io.BytesIO(tar.extractfile("000010000.jpg").read()))
    assert image.size == (record["width"], record["height"]) == (96, 80)


def test_folder_is_written_atomically(tmp_path, make_images):
    def break_off():
        yield from make_images(3)
        raise RuntimeError("killed")

    folder = tmp_path / "demo"
    with pytest.raises(RuntimeError, match="killed"):
        write_img2dataset(break_off(), folder)
    assert not folder.exists()
    assert write_img2dataset(iter(make_images(3)), folder) == 3
    assert [p.name for p in tmp_path.iterdir()] == ["demo"]
    (folder / "stale.tar").touch()
    write_img2dataset(iter(make_images(3)), folder)
    assert not (folder / "stale.tar").exists()


def test_data_set_depends_on_the_seed_alone(tmp_path):
    """The whole of `demo_images` with few sources, in a process without the threads of other tests: it forks."""
    script = (
        "import sys; from pathlib import Path; import pipelines.toy.data as data\n"
        "data.emoji_stems = lambda: ['1F431', '1F680', '1F600']\n"
        "data.PHOTOGRAPHS = {'moon.png': 'the moon', 'flower.jpg': 'a red flower'}\n"
        "for folder, seed in (('a', 0), ('b', 0), ('c', 1)):\n"
        "    data.write_img2dataset(data.demo_images(6, seed), Path(sys.argv[1], folder), 15)\n"
    )
    script += "data.write_img2dataset(data.demo_images(6, 0, 2), Path(sys.argv[1], 'pairs'), 100)\n"
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, capture_output=True, timeout=300)
    a, b, c = ({p.name: p.read_bytes() for p in (tmp_path / folder).iterdir()} for folder in "abc")
    assert a == b
    assert a.keys() == c.keys()
    assert a["00000.tar"] != c["00000.tar"]
    rows = [row for file in sorted((tmp_path / "a").glob("*.parquet")) for row in pq.read_table(file).to_pylist()]
    assert len(rows) == 3 * len(BACKGROUNDS) + 6 + 13 + 1
    with tarfile.open(tmp_path / "pairs/00000.tar") as tar:
        names = tar.getnames()
    captions = {row["key"]: row["caption"] for row in pq.read_table(tmp_path / "pairs/00000.parquet").to_pylist()}
    pairs = {key for key in captions if f"{key}.source.jpg" in names}
    assert len(captions) == len(rows) + 3 * 2 + 1
    assert len(pairs) == 3 * 2 + 1
    assert sorted(captions[key] for key in captions.keys() - pairs) == sorted(row["caption"] for row in rows)
    hashes = Counter(row["sha256"] for row in rows if row["caption"].startswith(("an emoji", "a photo")))
    assert sorted(hashes.values()) == [1] * (3 * len(BACKGROUNDS) + 6 - 1) + [2]
