"""Files of a source, also inside zip files."""

import io
import zipfile

import pytest
from own_images import IMAGE, read, table, write, zip_of
from own_sources import parquet_of

from pipelines.core import storage
from pipelines.core.config import ConfigError
from pipelines.data.curate import image_lists, source_files
from pipelines.data.curate.samples import Columns
from pipelines.data.curate.source_files import list_source_files
from pipelines.data.curate.sources import find_source


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


def test_file_that_is_no_source(tmp_path):
    (tmp_path / "a.png").write_bytes(IMAGE)
    with pytest.raises(ConfigError, match="a.png': is not a folder"):
        list_source_files(str(tmp_path / "a.png"))
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.zip").write_bytes(io.BytesIO(b"no zip").getvalue())
    assert read(tmp_path / "in", tmp_path / "out") == {"a.zip": ("", "zip cannot be read")}
