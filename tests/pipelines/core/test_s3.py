"""S3 that answers 503, cuts answers off, or is not there: nothing is lost, repeated, half written, or waited for."""

import io
import logging
import random
import re
import socket
import tarfile
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from s3_faults import serve
from tenacity import stop_after_attempt

from pipelines.core import s3 as object_store
from pipelines.core import storage
from pipelines.data.datasets import read_rows

MIB = 1 << 20


@pytest.fixture(scope="module")
def data():
    return random.Random(0).randbytes(6 * MIB + 12345)


@pytest.fixture(params=["503", "cut"])
def stored(request, faulty_s3, data, monkeypatch):
    """(URI of `data`, its fault): one GET in three fails."""
    folder, server = faulty_s3
    monkeypatch.setattr(object_store, "CHUNK", MIB // 4)
    uri = storage.join(folder, "data")
    storage.write_bytes(uri, data)
    fault = server.slow_down("GET", every=3) if request.param == "503" else server.cut(100_000, "GET", every=3)
    return uri, fault


@pytest.mark.parametrize("size", [1000, MIB // 4, 3 * MIB, -1])
def test_reads_every_byte_once(stored, data, size):
    uri, fault = stored
    with storage.open_file(uri) as file:
        assert b"".join(iter(lambda: file.read(size), b"")) == data
    assert fault.struck >= 6


def test_seeks(stored, data):
    uri, fault = stored
    generator = random.Random(1)
    with storage.open_file(uri) as file:
        assert file.seekable()
        assert file.seek(0, io.SEEK_END) == len(data)
        assert file.read(1) == b""
        for _ in range(30):
            place, size = generator.randrange(len(data)), generator.randrange(MIB)
            file.seek(place)
            assert file.read(size) == data[place : place + size]
            assert file.tell() == min(len(data), place + size)
        file.seek(-5, io.SEEK_END)
        file.seek(-5, io.SEEK_CUR)
        assert file.read() == data[-10:]
        file.seek(len(data) + 5)
        assert file.read() == b""
        with pytest.raises(ValueError):
            file.seek(-1)
    assert fault.struck >= 6


def test_read_bytes_and_read_file(stored, data):
    uri, fault = stored
    assert storage.read_bytes(uri) == data
    assert storage.read_file(uri, lambda path: path.read_bytes()) == data
    assert fault.struck >= 12


def test_tar_is_streamed(stored):
    uri, fault = stored
    generator, buffer = random.Random(2), io.BytesIO()
    members = {f"{i}.jpg": generator.randbytes(generator.randrange(50_000)) for i in range(100)}
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    storage.write_bytes(uri, buffer.getvalue())
    with storage.open_file(uri) as file, tarfile.open(fileobj=file, mode="r|*") as tar:
        assert {m.name: tar.extractfile(m).read() for m in tar} == members
    assert fault.struck


def test_parquet_is_read_by_row_groups(stored):
    uri, fault = stored
    generator = random.Random(3)
    table = pa.table({"key": [str(i) for i in range(60)], "image": [generator.randbytes(50_000) for _ in range(60)]})
    storage.write_file(uri, lambda path: pq.write_table(table, path, row_group_size=16))
    groups = list(read_rows(uri, ["key", "image"]))
    assert [len(group["key"]) for group in groups] == [16, 16, 16, 12]
    assert {name: [v for group in groups for v in group[name]] for name in table.column_names} == table.to_pydict()
    assert [key for group in read_rows(uri, ["key"]) for key in group["key"]] == table["key"].to_pylist()
    assert fault.struck


def test_parts_of_two_objects_are_not_joined(faulty_s3):
    uri = storage.join(faulty_s3[0], "data")
    storage.write_bytes(uri, b"x" * 1000)
    with storage.open_file(uri) as file:
        storage.write_bytes(uri, b"y" * 100)
        with pytest.raises(storage.StorageError, match=f"{uri}: .*PreconditionFailed"):
            file.read()


@pytest.mark.parametrize("fault", ["503", "cut"])
def test_list_exists_and_delete(faulty_s3, fault):
    folder, server = faulty_s3
    uris = [storage.join(folder, "deep", f"{i:02}.tar") for i in range(20)]
    for uri in uris:
        storage.write_bytes(uri, b"x")
    fault = server.slow_down(every=2) if fault == "503" else server.cut(150, "(GET|POST)", every=2)
    for _ in range(4):
        assert storage.list_files(folder, ".tar") == uris
        assert storage.exists(uris[3])
        assert storage.exists(folder)
        assert not storage.exists(f"{uris[3]}.gz")
    storage.delete_folder(folder)
    assert storage.list_files(folder) == []
    assert fault.struck > 4


def puts(tmp_path):
    """The two ways to write an object."""

    def put_file(uri, data):
        path = tmp_path / "local"
        path.write_bytes(data)
        storage.put_file(path, uri)

    return {"write_bytes": storage.write_bytes, "put_file": put_file}


@pytest.mark.parametrize("fault", ["503", "cut"])
@pytest.mark.parametrize("way", ["write_bytes", "put_file"])
@pytest.mark.parametrize("size", [0, 1000, 20 * MIB])
def test_writes(faulty_s3, tmp_path, way, size, fault):
    """A small object is one PUT, a large one three between two POSTs; the first of a kind fails, then one in four."""
    folder, server = faulty_s3
    uri, content = storage.join(folder, "object"), random.Random(4).randbytes(size)
    for pattern in ("PUT", "POST .*uploads", "POST .*uploadId"):
        server.clear()
        struck = server.slow_down(pattern, every=4) if fault == "503" else server.cut(20, pattern, every=4)
        struck.matched = 3
        puts(tmp_path)[way](uri, content)
        assert storage.read_bytes(uri) == content
        # the answer to a PUT has no body that could be cut, and a small object needs no POST
        assert struck.struck or (fault == "cut" and pattern == "PUT") or (size < MIB and pattern != "PUT")


@pytest.mark.parametrize("way", ["write_bytes", "put_file"])
@pytest.mark.parametrize("part", [1, 3])
def test_upload_that_fails_leaves_nothing(faulty_s3, tmp_path, way, part):
    folder, server = faulty_s3
    uri = storage.join(folder, "object")
    server.slow_down(f"PUT .*partNumber={part}")
    with pytest.raises(OSError, match=re.escape(uri)):
        puts(tmp_path)[way](uri, bytes(20 * MIB))
    assert server.count("POST .*uploads=?$") == server.count("DELETE .*uploadId") == 4
    assert not storage.exists(uri)


class BadDisk(io.BytesIO):
    def read(self, size=-1):
        if self.tell() > 9 * MIB:
            raise OSError(5, "Input/output error")
        return super().read(size)


def test_upload_of_an_unreadable_file_leaves_nothing(faulty_s3):
    """pyarrow's own `copy_files`, and its streams left by an exception, complete the object with what they had."""
    folder, server = faulty_s3
    uri = storage.join(folder, "object")
    with pytest.raises(OSError, match="Input/output error"):
        object_store.write(uri, lambda: BadDisk(bytes(20 * MIB)))
    assert server.count("POST .*uploads=?$") == server.count("DELETE .*uploadId") == 1
    with pytest.raises(TypeError):
        storage.write_bytes(uri, "text")  # type: ignore[arg-type]
    assert not storage.exists(uri)


OPERATIONS = {
    "read_bytes": storage.read_bytes,
    "open_file": storage.open_file,
    "exists": storage.exists,
    "list_files": storage.list_files,
    "delete_folder": storage.delete_folder,
    "write_bytes": lambda uri: storage.write_bytes(uri, b"data"),
}


def test_absent_raises_at_once(faulty_s3):
    folder, server = faulty_s3
    absent_bucket = f"s3://{server.bucket}-absent"
    for uri in (folder, absent_bucket):
        for read in (storage.read_bytes, storage.open_file):
            server.clear()
            with pytest.raises(FileNotFoundError, match="absent"):
                read(storage.join(uri, "absent"))
            assert server.count() == 1
    server.clear()
    with pytest.raises(OSError, match=f"{absent_bucket}/absent: .*NoSuchBucket"):
        storage.write_bytes(f"{absent_bucket}/absent", b"data")
    assert server.count() == 1


@pytest.mark.parametrize("operation", OPERATIONS)
def test_denied_raises_at_once(faulty_s3, operation, caplog):
    folder, server = faulty_s3
    server.deny()
    with pytest.raises(OSError, match=f"{folder}: .*(AccessDenied|403)"):
        OPERATIONS[operation](folder)
    assert server.count() == 1
    assert not caplog.records


@pytest.mark.parametrize("operation", OPERATIONS)
def test_lasting_503_raises_after_the_last_attempt(faulty_s3, operation, caplog):
    folder, server = faulty_s3
    server.slow_down()
    with caplog.at_level(logging.WARNING), pytest.raises(OSError, match=f"^{folder}: .*(503|SlowDown)") as e:
        OPERATIONS[operation](folder)
    assert server.count() == 4
    lines = [record.getMessage() for record in caplog.records if record.name == "pipelines.core.s3"]
    assert len(lines) == 3
    assert all(folder in line and "\n" not in line for line in lines)
    for text in [*lines, str(e.value)]:
        assert "test-secret-key" not in text
        assert "test-key-id" not in text


@pytest.mark.parametrize("operation", OPERATIONS)
def test_server_that_never_answers(faulty_s3, operation, monkeypatch):
    folder, _ = faulty_s3
    monkeypatch.setattr(object_store, "SILENT_SECONDS", 1)
    monkeypatch.setattr(object_store, "RETRIES", object_store.RETRIES.copy(stop=stop_after_attempt(2)))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(OSError, match=folder):
            OPERATIONS[operation](folder)
    assert 1.5 < time.monotonic() - started < 10


def test_clients_follow_the_environment(faulty_s3, monkeypatch):
    folder, server = faulty_s3
    storage.write_bytes(storage.join(folder, "x"), b"data")
    with serve() as other:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", other.url)
        server.clear()
        storage.write_bytes(storage.join(folder, "x"), b"data")
        assert storage.read_bytes(storage.join(folder, "x")) == b"data"
        assert other.count() >= 3
        assert not server.count()


def test_local_errors_are_not_retried(tmp_path, monkeypatch):
    monkeypatch.setattr(object_store, "RETRIES", None)
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(str(tmp_path / "absent"))
    with pytest.raises(IsADirectoryError):
        storage.read_bytes(str(tmp_path))
