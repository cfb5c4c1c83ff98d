"""Shards as streams of samples: tars with their metadata, folders of a class, stores that fail, damaged bytes."""

import gzip
import hashlib
import os
import random
import tarfile
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tars import sample, tar_of, with_header

from pipelines.core import storage
from pipelines.data.curate.samples import Columns
from pipelines.data.curate.shard_reader import read_class, read_shard
from pipelines.data.curate.sources import find_source
from pipelines.data.curate.tar_reader import TornSamples


def table_of(keys, **more):
    rows = {"key": keys, "jpg": [k.encode() * 50 for k in keys], "caption": [f"caption {k}" for k in keys]}
    return pa.table({**rows, **more})


def noise(size):
    return b"".join(hashlib.sha256(i.to_bytes(4, "big")).digest() for i in range(size // 32))


def test_a_storage_error_is_not_a_truncated_tar(tmp_path):
    with pytest.raises(OSError):
        list(read_shard(str(tmp_path / "absent.tar"), Columns()))


def test_rows_the_tar_lost_and_downloads_that_failed(make_shards, make_images):
    pictures = make_images(6)
    shard = make_shards([*pictures, type(pictures[0])("never arrived", None, 6.0)]) / "00000.tar"
    whole = list(read_shard(str(shard), Columns()))
    assert [s.problem for s in whole].count("failed download") == 1
    with tarfile.open(shard) as tar:
        third = tar.getmember("000000003.jpg").offset
    shard.write_bytes(shard.read_bytes()[:third] + bytes(1024))  # cut, with an end mark
    problems = {s.key: s.problem for s in read_shard(str(shard), Columns())}
    assert [key for key, problem in problems.items() if not problem] == ["000000000", "000000001", "000000002"]
    assert list(problems.values()).count("not in the tar") == 3
    assert len(problems) == 7


def test_metadata_beside_a_tar_is_not_needed(make_shards, make_images):
    folder = make_shards(make_images(3))
    before = [s for s in read_shard(str(folder / "00000.tar"), Columns()) if not s.problem]
    (folder / "00000.parquet").unlink()
    assert [s for s in read_shard(str(folder / "00000.tar"), Columns()) if not s.problem] == before


def with_metadata(tmp_path, tar, keys, **columns):
    (tmp_path / "00000.tar").write_bytes(tar)
    table = {"key": keys, "status": ["success"] * len(keys), **columns}
    pq.write_table(pa.table(table), tmp_path / "00000.parquet")
    return [(s.key, s.problem) for s in read_shard(str(tmp_path / "00000.tar"), Columns())]


def test_lost_samples_are_counted_once_under_their_cause(tmp_path):
    """By their keys, which the metadata has: the damage itself is then no row of its own."""
    tar = with_header(tar_of([("a.jpg", b"x"), ("b.jpg", b"x"), ("c.jpg", b"x")]), "b.jpg", chksum=b"0000001")
    assert with_metadata(tmp_path, tar, ["a", "b", "c"]) == [("a", ""), ("c", ""), ("b", "damaged header in tar")]
    assert with_metadata(tmp_path, tar, ["a", "c"]) == [("a", ""), ("c", ""), ("", "damaged header in tar")]


def test_image_of_a_download_that_failed_at_first_is_counted_once(tmp_path):
    statuses = ["failed_to_download", "failed_to_download"]
    found = with_metadata(tmp_path, tar_of(sample("a")), ["a", "b"], status=statuses)
    assert found == [("a", ""), ("b", "failed download")]


def test_table_of_images_beside_a_tar_is_read_too(tmp_path):
    found = with_metadata(tmp_path, tar_of(sample("a")), ["b"], jpg=[b"x"], caption=["c"])
    assert sorted(found) == [("a", ""), ("b", "")]


def test_foreign_parquet_beside_a_tar(tmp_path):
    (tmp_path / "00000.tar").write_bytes(tar_of(sample("a")))
    pq.write_table(pa.table({"embedding": [[1.0]]}), tmp_path / "00000.parquet")
    assert [(s.key, s.problem) for s in read_shard(str(tmp_path / "00000.tar"), Columns())] == [("a", "")]
    (tmp_path / "00000.parquet").write_bytes(b"no parquet")
    assert [(s.key, s.problem) for s in read_shard(str(tmp_path / "00000.tar"), Columns())] == [
        ("a", ""), ("", "metadata beside tar cannot be read")
    ]  # fmt: skip


def test_folder_of_a_class(tmp_path):
    for name in ("a.JPEG", "a.png", "b 2.0.gif", "c.tiff", "notes.txt", "x/a.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    assert [(s.key, s.image, s.problem) for s in read_class(str(tmp_path))] == [
        ("a", b"a.JPEG", ""), ("a", b"a.png", ""), ("b 2.0", b"b 2.0.gif", ""),
        ("c", b"", "image format tiff is not read"), ("x/a", b"x/a.jpg", ""),
    ]  # fmt: skip


def test_source_on_an_unreliable_store(faulty_s3, make_shards, make_images, monkeypatch):
    """503 to every third request, and bodies cut: the same samples, each once."""
    uri, server = faulty_s3
    monkeypatch.setattr("pipelines.core.s3.CHUNK", 1 << 14)
    folder = make_shards(make_images(12), 4)
    for tar in sorted(folder.glob("*.tar"))[1:]:
        (folder / f"{tar.name}.gz").write_bytes(gzip.compress(tar.read_bytes()))
        tar.unlink()
    table = {"key": [f"p{i}" for i in range(50)], "jpg": [os.urandom(5000)] * 50, "caption": ["x"] * 50}
    pq.write_table(pa.table(table), folder / "table.parquet", row_group_size=20)
    for path in folder.iterdir():
        storage.put_file(path, f"{uri}/{path.name}")
    local = [s for shard in find_source(str(folder), Columns()).shards.values() for s in read_shard(shard, Columns())]
    refused = server.slow_down("GET", every=3)
    cut = server.cut(1000, "GET", every=4)
    far = [s for shard in find_source(uri, Columns()).shards.values() for s in read_shard(shard, Columns())]
    assert far == local
    assert len(far) == 12 + 50 + 1
    assert refused.struck > 3
    assert cut.struck > 3


def test_an_unreachable_shard_is_not_damaged(faulty_s3, tmp_path, monkeypatch):
    uri, server = faulty_s3
    monkeypatch.setattr("pipelines.core.s3.CHUNK", 1 << 14)
    rows = {"key": [str(i) for i in range(60)], "jpg": [os.urandom(5000) for _ in range(60)], "caption": ["x"] * 60}
    pq.write_table(pa.table(rows), tmp_path / "00000.parquet", row_group_size=20)
    storage.put_file(tmp_path / "00000.parquet", f"{uri}/00000.parquet")
    samples = read_shard(f"{uri}/00000.parquet", Columns())
    assert next(samples).key == "0"
    server.slow_down("GET")
    with pytest.raises(storage.StorageError):
        list(samples)
    with pytest.raises(storage.StorageError):
        list(read_shard(f"{uri}/00000.parquet", Columns()))


@pytest.mark.parametrize("name", ["00000.parquet", "00000.tar", "00000.tar.gz"])
def test_hundreds_of_damaged_shards(tmp_path, name):
    """Whatever happens to the bytes, reading ends, names no key twice among the good, and invents none."""
    rng = random.Random(0)
    keys = [f"{i:03d}" for i in range(40)]
    if name.endswith("parquet"):
        rows = table_of(keys, jpg=[noise(640)] * 40, aesthetic=[5.0] * 40)
        pq.write_table(rows, tmp_path / name, row_group_size=10)
    else:
        members = [(f"{k}.{e}", d) for k in keys for e, d in {"jpg": noise(640), "txt": b"c", "json": b"{}"}.items()]
        data = tar_of(members)
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    whole = (tmp_path / name).read_bytes()
    outcomes = Counter()
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        if rng.random() < 0.3:
            del data[rng.randrange(len(data)) :]
        (tmp_path / name).write_bytes(data)
        try:
            samples = list(read_shard(str(tmp_path / name), Columns()))
        except TornSamples as torn:
            samples = list(read_shard(str(tmp_path / name), Columns(), torn.keys))
        outcomes[any(s.problem for s in samples)] += 1
        assert samples
        assert all(s.problem or s.key.encode() for s in samples)
        assert len(samples) <= 3 * 40 + 1
    assert outcomes[True] > 30
