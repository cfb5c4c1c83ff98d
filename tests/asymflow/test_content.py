import os
import sqlite3

import pytest

from asymflow import content
from asymflow.content import cache_file, content_of, hash_files, sha256_of

LARGE = 3 << 20


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache that keeps even what has just been written; the list of files that were read."""
    monkeypatch.setenv("ASYMFLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(content, "_SETTLED_NS", -1)
    read, original = [], content._read

    def counted(file, bar):
        read.append(file.name)
        return original(file, bar)

    monkeypatch.setattr(content, "_read", counted)
    return read


def test_content_changes_with_any_byte(tmp_path, cache):
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(LARGE))
    first, times = content_of(file), os.stat(file)
    with open(file, "r+b") as stream:
        stream.seek(LARGE // 2)
        stream.write(b"\1")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # as tools that keep times do
    assert content_of(file) != first


def test_a_file_is_read_once_by_all_processes(tmp_path, cache):
    for name in ("a", "b"):
        (tmp_path / "model" / name).mkdir(parents=True)
        (tmp_path / "model" / name / "weights").write_bytes(name.encode() * LARGE)
    first = content_of(tmp_path / "model")
    assert len(cache) == 2
    assert content_of(tmp_path / "model") == first
    assert len(cache) == 2
    with sqlite3.connect(cache_file()) as stored:  # where another process finds them
        assert stored.execute("SELECT count(*) FROM files").fetchone() == (2,)
    (tmp_path / "model/a/weights").write_bytes(b"c" * LARGE)
    assert content_of(tmp_path / "model") != first
    assert cache[2:] == ["weights"]


@pytest.mark.parametrize("harm", ["deleted", "damaged", "read-only", "of another kind"])
def test_the_cache_can_be_lost_without_harm(tmp_path, cache, harm):
    (tmp_path / "weights").write_bytes(b"x" * LARGE)
    first = sha256_of(tmp_path / "weights")
    file = cache_file()
    if harm == "deleted":
        file.unlink()
    elif harm == "damaged":
        file.write_bytes(b"no database " * 1000)
    elif harm == "read-only":
        file.unlink()
        file.parent.rmdir()
        file.parent.write_text("a file where the folder should be")
    else:
        file.unlink()
        with sqlite3.connect(file) as stored:
            stored.execute("CREATE TABLE files (other TEXT)")
    assert sha256_of(tmp_path / "weights") == first
    assert cache == ["weights", "weights"]


def test_a_file_that_changed_just_now_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("ASYMFLOW_CACHE", str(tmp_path / "cache"))
    (tmp_path / "weights").write_bytes(b"x" * LARGE)
    sha256_of(tmp_path / "weights")
    assert not cache_file().exists() or not sqlite3.connect(cache_file()).execute("SELECT * FROM files").fetchall()


def test_names_count_hidden_files_do_not_and_links_are_followed(tmp_path):
    def make(name, **files):
        for path, data in files.items():
            file = tmp_path / name / path.replace("__", "/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        return tmp_path / name

    plain = make("plain", **{"part__weights": b"1"})
    assert content_of(make("other_name", **{"part__weight": b"1"})) != content_of(plain)
    assert content_of(make("other_place", **{"weights": b"1"})) != content_of(plain)
    hidden = {"part__weights": b"1", ".cache__huggingface": b"2", ".DS_Store": b"3", "part__x.partial": b"4"}
    assert content_of(make("hidden", **hidden)) == content_of(plain)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/part").symlink_to(plain / "part")
    (plain / "part/loop").symlink_to(plain)
    assert content_of(tmp_path / "linked") == content_of(plain)
    (plain / "part/weights").write_bytes(b"2")
    assert content_of(tmp_path / "linked") != content_of(hidden_path := tmp_path / "hidden")
    assert content_of(hidden_path, suffix=".py") == content_of(tmp_path / "other_place", suffix=".py")


def test_missing_paths_are_errors(tmp_path):
    with pytest.raises(FileNotFoundError):
        hash_files({"a": tmp_path / "absent"})
