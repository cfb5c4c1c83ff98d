"""Lists of image files, with their captions."""

from own_images import IMAGE, read, write

from pipelines.data.curate.image_lists import read_list, write_lists
from pipelines.data.curate.samples import Columns
from pipelines.data.curate.sources import find_source


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


def test_lists_are_bounded(tmp_path):
    source = write(tmp_path / "in", {f"{number:04}.png": b"x" for number in range(600)})
    items = write_lists(find_source(source, Columns()), Columns(), str(tmp_path / "out"))
    sizes = [len(list(read_list(uri, Columns()))) for uri in items.values()]
    assert sizes == [256, 256, 88]
    assert list(items) == ["images/00000", "images/00001", "images/00002"]
