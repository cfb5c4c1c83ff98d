import threading

import pytest

from pipelines.core import s3 as object_store
from pipelines.core import storage


@pytest.fixture(params=["local", "s3"])
def root(request, tmp_path):
    return str(tmp_path / "a folder %41") if request.param == "local" else request.getfixturevalue("s3")


def test_bytes_round_trip(root):
    uri = storage.join(root, "deep", "file.bin")
    assert not storage.exists(uri)
    storage.write_bytes(uri, b"one")
    storage.write_bytes(uri, b"second")
    assert storage.exists(uri)
    assert storage.exists(root)
    assert storage.read_bytes(uri) == b"second"


def test_missing_file_raises(root):
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(storage.join(root, "absent"))


def test_files_round_trip(root, tmp_path):
    uri = storage.join(root, "deep", "table.parquet")
    storage.write_file(uri, lambda path: path.write_bytes(b"table"))
    assert storage.read_file(uri, lambda path: (path.suffix, path.read_bytes())) == (".parquet", b"table")
    local = tmp_path / "local"
    local.write_bytes(b"other")
    storage.put_file(local, uri)
    assert storage.read_bytes(uri) == b"other"
    assert local.exists()


def test_list_is_sorted_and_leaves_out_hidden_and_unfinished(root):
    for name in ("b.tar", "a/2.tar", "a/1.parquet", ".done/a.tar", "a/.hidden.tar", "c.tar.0123.partial", ".x.partial"):
        storage.write_bytes(storage.join(root, name), b"x")
    base = storage.absolute(root)
    assert storage.list_files(root) == [f"{base}/{name}" for name in ("a/1.parquet", "a/2.tar", "b.tar")]
    assert storage.list_files(root, ".tar") == [f"{base}/a/2.tar", f"{base}/b.tar"]
    assert storage.list_files(storage.join(root, ".done"), ".tar") == [f"{base}/.done/a.tar"]
    assert storage.list_files(f"{root}/") == storage.list_files(root)


def test_list_of_nothing_is_empty(root):
    assert storage.list_files(storage.join(root, "absent")) == []


def test_delete_folder(root):
    storage.write_bytes(storage.join(root, "gone", "file"), b"x")
    storage.write_bytes(storage.join(root, "gone2", "file"), b"x")
    storage.delete_folder(storage.join(root, "gone"))
    storage.delete_folder(storage.join(root, "gone"))
    assert [uri.rpartition("/prefix/")[2].rpartition("%41/")[2] for uri in storage.list_files(root)] == ["gone2/file"]


def test_failed_write_leaves_nothing(root):
    uri = storage.join(root, "half")

    def write(path):
        path.write_bytes(b"half")
        raise RuntimeError("full disk")

    with pytest.raises(RuntimeError, match="full disk"):
        storage.write_file(uri, write)
    assert not storage.exists(uri)
    assert storage.list_files(root) == []


@pytest.mark.parametrize("put", ["write_bytes", "put_file"])
def test_reader_never_sees_half_a_file(tmp_path, put):
    uri, size = str(tmp_path / "file"), 2 << 20
    contents = [bytes([digit]) * size for digit in b"ab"]
    sources = []
    for index, content in enumerate(contents):
        sources.append(tmp_path / f"source{index}")
        sources[-1].write_bytes(content)
    storage.write_bytes(uri, contents[0])
    stop = threading.Event()

    def rewrite():
        for turn in range(60):
            if put == "write_bytes":
                storage.write_bytes(uri, contents[turn % 2])
            else:
                storage.put_file(sources[turn % 2], uri)
        stop.set()

    writer = threading.Thread(target=rewrite)
    writer.start()
    seen = []
    while not stop.is_set():
        data = storage.read_bytes(uri)
        seen.append(len(data) == size and len(set(data[:: size // 64])) == 1 and data[0] == data[-1])
    writer.join()
    assert seen
    assert all(seen)


def test_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("runs/x/") == str(tmp_path / "runs/x")
    assert storage.absolute("s3://bucket/x/") == "s3://bucket/x"


@pytest.mark.parametrize("use", [storage.read_bytes, storage.exists, storage.list_files, storage.open_file])
def test_other_schemes_are_refused(use):
    with pytest.raises(ValueError, match="local path or s3://bucket/prefix"):
        use("ftp://host/x")


def test_folder_markers_are_not_files(s3):
    """pyarrow and the consoles of stores make empty objects named like folders."""
    for key in ("", "deep/"):
        object_store.client().put_object(
            **object_store.bucket_and_key(f"{s3}/x") | {"Key": f"some/prefix/{key}"}, Body=b""
        )
    storage.write_bytes(f"{s3}/deep/file", b"x")
    assert storage.list_files(s3) == [f"{s3}/deep/file"]


def test_fingerprint_of_a_folder_is_its_content(s3, tmp_path):
    found = {}
    for uri in (str(tmp_path / "local"), f"{s3}/stored"):
        storage.write_bytes(f"{uri}/a/x.png", b"one")
        storage.write_bytes(f"{uri}/y.png", b"two")
        first = storage.fingerprint(uri)
        assert storage.fingerprint(uri) == first
        storage.write_bytes(f"{uri}/y.png", b"owt")
        assert storage.fingerprint(uri) != first
        storage.write_bytes(f"{uri}/y.png", b"two")
        assert storage.fingerprint(uri) == first
        found[uri] = first
    copy = f"{s3}/elsewhere"
    storage.write_bytes(f"{copy}/a/x.png", b"one")
    storage.write_bytes(f"{copy}/y.png", b"two")
    assert storage.fingerprint(copy) == found[f"{s3}/stored"]
