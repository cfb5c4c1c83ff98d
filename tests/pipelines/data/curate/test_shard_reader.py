import gzip
import hashlib
import io
import json
import os
import random
import tarfile
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.core import storage
from pipelines.core.config import ConfigError
from pipelines.data.curate import shard_reader as crawl
from pipelines.data.curate.shard_reader import Columns, check_columns, key_prefix, list_shards, read_members, read_shard


def tar_of(members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def sample(key, size=2000):
    return [(f"{key}.jpg", key.encode() * size), (f"{key}.txt", b"caption"), (f"{key}.json", b"{}")]


@pytest.fixture
def members_of(tmp_path):
    """Write bytes as a tar and read it back."""

    def read(data):
        path = tmp_path / "00000.tar"
        path.write_bytes(data)
        return list(read_members(str(path)))

    return read


@pytest.fixture
def read_back(tmp_path):
    """Write a table as a parquet shard and read it back."""

    def read(table, columns=None, **options):
        pq.write_table(table, tmp_path / "00000.parquet", **options)
        return list(read_shard(str(tmp_path / "00000.parquet"), columns or Columns()))

    return read


def table_of(keys, **more):
    rows = {"key": keys, "jpg": [k.encode() * 50 for k in keys], "caption": [f"caption {k}" for k in keys]}
    return pa.table({**rows, **more})


def test_samples_are_adjacent_members_of_a_key(members_of):
    samples = members_of(tar_of(sample("a") + sample("folder/b") + sample("c")))
    assert [key for key, _ in samples] == ["a", "b", "c"]
    assert all(set(members) == {"jpg", "txt", "json"} for _, members in samples)
    assert samples[1][1]["txt"] == b"caption"


def test_gzip_tar(members_of):
    data = tar_of(sample("a") + sample("b"))
    assert members_of(gzip.compress(data)) == members_of(data)


@pytest.mark.parametrize("name", ["../../outside.jpg", "/etc/outside.jpg", "a/../../outside.jpg"])
def test_paths_that_lead_out_are_named_and_not_followed(members_of, tmp_path, name):
    samples = members_of(tar_of(sample("a") + [(name, b"evil")] + sample("b")))
    assert [key for key, _ in samples if key in "ab"] == ["a", "b"]
    assert (name, {"unsafe path": b""}) in samples
    assert [path.name for path in tmp_path.rglob("*")] == ["00000.tar"]


def test_links_are_not_followed(members_of):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        link = tarfile.TarInfo("a.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    assert members_of(buffer.getvalue()) == [("a.jpg", {"unsafe path": b""})]


def test_names_that_are_not_utf8_can_be_written_down(members_of):
    data = tar_of(sample("a")).replace(b"a.jpg", b"\xff.jpg")
    header = bytearray(data)
    header[148:156] = b" " * 8  # the checksum of a header counts itself as blanks
    header[148:156] = f"{sum(header[:512]):06o}\0 ".encode()
    keys = [key for key, _ in members_of(bytes(header))]
    assert keys == ["?", "a"] and pa.array(keys).to_pylist() == keys


def noise(size):
    return b"".join(hashlib.sha256(i.to_bytes(4, "big")).digest() for i in range(size // 32))


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_tar_cut_off_in_the_middle(members_of, compress):
    members = [(name, noise(64_000) if name.endswith("jpg") else b"") for key in "abc" for name, _ in sample(key)]
    data = compress(tar_of(members))
    samples = members_of(data[: len(data) // 2])
    assert samples[0][0] == "a" and "cut off" not in samples[0][1]
    assert samples[-1][0] == "b" and "cut off" in samples[-1][1]


def test_tar_cut_off_between_two_members(members_of):
    """Where tarfile sees nothing wrong: the mark of the end is missing."""
    data = tar_of(sample("a") + sample("b"))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        second = tar.getmember("b.jpg").offset
    assert "cut off" in members_of(data[:second])[-1][1]


def test_broken_header_is_not_the_end(members_of):
    data = bytearray(tar_of(sample("a") + sample("b") + sample("c")))
    with tarfile.open(fileobj=io.BytesIO(bytes(data))) as tar:
        data[tar.getmember("b.jpg").offset + 150] ^= 0xFF
    samples = members_of(bytes(data))
    assert [key for key, _ in samples] == ["a"] and "cut off" in samples[0][1]


@pytest.mark.parametrize("data", [b"", b"no tar at all" * 100, gzip.compress(b"")[:5]])
def test_what_is_no_tar_is_not_passed_over(members_of, data):
    (key, members), *more = members_of(data)
    assert "cut off" in members and key == "00000" and not more


def test_empty_tar_holds_nothing(members_of):
    assert members_of(tar_of([])) == []


def test_key_that_comes_again_is_another_sample(members_of):
    samples = members_of(tar_of(sample("a") + sample("a") + sample("b") + [("a.png", b"x")]))
    assert [(key, len(members)) for key, members in samples] == [("a", 3), ("a", 3), ("b", 3), ("a", 1)]


def test_file_too_large_to_be_a_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(crawl, "LARGEST_FILE", 1000)
    path = tmp_path / "00000.tar"
    path.write_bytes(tar_of(sample("a", 2000) + sample("b", 10)))
    assert [s.problem for s in read_shard(str(path), Columns())] == ["file too large", ""]


def test_store_that_fails_is_not_a_tar_cut_off(tmp_path):
    with pytest.raises(OSError):
        list(read_members(str(tmp_path / "absent.tar")))


def test_rows_the_tar_lost_and_downloads_that_failed(make_shards, make_pictures):
    pictures = make_pictures(6)
    shard = make_shards([*pictures, type(pictures[0])("never arrived", None, 6.0)]) / "00000.tar"
    whole = list(read_shard(str(shard), Columns()))
    assert [s.problem for s in whole].count("failed download") == 1
    with tarfile.open(shard) as tar:
        third = tar.getmember("000000003.jpg").offset
    shard.write_bytes(shard.read_bytes()[:third] + bytes(1024))  # cut, with a mark of the end
    problems = {s.key: s.problem for s in read_shard(str(shard), Columns())}
    assert [key for key, problem in problems.items() if not problem] == ["000000000", "000000001", "000000002"]
    assert list(problems.values()).count("not in the tar") == 3 and len(problems) == 7


def test_metadata_beside_a_tar_is_not_needed(make_shards, make_pictures):
    folder = make_shards(make_pictures(3))
    before = [s for s in read_shard(str(folder / "00000.tar"), Columns()) if not s.problem]
    (folder / "00000.parquet").unlink()
    assert [s for s in read_shard(str(folder / "00000.tar"), Columns()) if not s.problem] == before


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"json": b"[]"}, "no readable metadata"),
        ({"json": b"{"}, "no readable metadata"),
        ({"json": b"[" * 100_000}, "no readable metadata"),
        ({"json": None}, "no readable metadata"),
        ({"txt": b"\xff\xfe"}, "no readable metadata"),
        ({"txt": None}, ""),
        ({"txt": None, "json": b"[]"}, "no readable metadata"),
        ({"txt": None, "json": b'{"caption": 3}'}, ""),
        ({"txt": None, "json": b'{"caption": "of the json"}'}, ""),
        ({"jpg": None}, "no picture"),
        ({"jpg": None, "webp": b"x"}, ""),
    ],
)
def test_samples_that_are_not_whole(tmp_path, change, problem):
    members = {"jpg": b"x", "txt": b"caption", "json": b"{}", **change}
    path = tmp_path / "00000.tar"
    path.write_bytes(tar_of([(f"a.{e}", data) for e, data in members.items() if data is not None]))
    assert [s.problem for s in read_shard(str(path), Columns())] == [problem]


def test_rows_of_a_parquet_shard(read_back):
    samples = read_back(table_of(["a", "b"], aesthetic=[5.0, 6.0]), row_group_size=1)
    assert [(s.key, s.image, s.caption, s.problem) for s in samples] == [
        ("a", b"a" * 50, "caption a", ""), ("b", b"b" * 50, "caption b", "")
    ]  # fmt: skip
    assert samples[1].record == {"aesthetic": 6.0}


def test_columns_by_other_names(read_back):
    table = pa.table({"ID": [7], "bytes": [b"x"], "TEXT": ["words"], "AESTHETIC_SCORE": [6.0]})
    columns = Columns(key="ID", image="bytes", caption="TEXT", aesthetic="AESTHETIC_SCORE")
    (found,) = read_back(table, columns)
    assert (found.key, found.image, found.caption, found.record) == ("7", b"x", "words", {"AESTHETIC_SCORE": 6.0})


def test_cells_that_are_missing(read_back):
    table = pa.table(
        {"key": ["a", None, "c", "d"], "jpg": [None, b"x", b"x", b"x"], "caption": ["x", "x", None, "x"],
         "status": ["success"] * 3 + ["failed_to_download"]}
    )  # fmt: skip
    samples = read_back(table)
    assert [s.problem for s in samples] == ["no picture", "no key", "", "failed download"]
    assert samples[2].caption == ""


def test_parquet_shards_that_cannot_be_read(tmp_path, read_back):
    (found,) = read_back(table_of(["a"]).drop_columns(["jpg"]))
    assert found.problem == "shard without column jpg"
    assert read_back(table_of(["a"]).slice(0, 0)) == []
    for data in (b"", b"no parquet", (tmp_path / "00000.parquet").read_bytes()[:40]):
        (tmp_path / "00001.parquet").write_bytes(data)
        (found,) = read_shard(str(tmp_path / "00001.parquet"), Columns())
        assert (found.key, found.problem) == ("00001", "no readable shard")


def test_damaged_row_group_costs_its_rows_only(tmp_path):
    keys = [f"{i:03d}" for i in range(60)]
    pq.write_table(
        pa.table({"key": keys, "jpg": [os.urandom(500) for _ in keys], "caption": keys}),
        tmp_path / "00000.parquet", row_group_size=20, compression="gzip",
    )  # fmt: skip
    path = tmp_path / "00000.parquet"
    column = pq.ParquetFile(path).metadata.row_group(1).column(1)
    data = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    data[start : start + 40] = bytes(40)
    path.write_bytes(data)
    samples = list(read_shard(str(path), Columns()))
    assert len(samples) == 60 and len({s.key for s in samples}) == 60
    good = [s.key for s in samples if not s.problem]
    assert good == keys[:20] + keys[40:] and {s.problem for s in samples} == {"", "damaged shard"}


def test_wrong_column_is_named_before_anything_starts(tmp_path):
    path = str(tmp_path / "00000.parquet")
    pq.write_table(table_of(["a"]), path)
    check_columns(path, Columns())
    with pytest.raises(ConfigError, match="columns.image='png': .* no such column; it has key, jpg, caption"):
        check_columns(path, Columns(image="png"))


def test_shards_are_tars_and_the_parquet_that_is_no_metadata(tmp_path):
    for name in ("1/00000.tar", "1/00000.parquet", "1/00000_stats.json", "2/00000.tar.gz", "2/00001.parquet", "3.tgz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = list_shards(str(tmp_path))
    assert {n: os.path.relpath(u, tmp_path) for n, u in found.items()} == {
        "1-00000": "1/00000.tar", "2-00000": "2/00000.tar.gz", "2-00001": "2/00001.parquet", "3": "3.tgz"
    }  # fmt: skip
    (tmp_path / "1-00000.tar").touch()
    with pytest.raises(ConfigError, match="two shards have one name"):
        list_shards(str(tmp_path))


def test_caption_is_that_of_the_text_or_of_the_json(tmp_path):
    path = tmp_path / "00000.tar"
    json_caption = {"json": b'{"caption": "json"}'}
    texts = {"a": {"txt": b"text", **json_caption}, "b": json_caption, "c": {"json": b"{}"}}
    path.write_bytes(tar_of([(f"{k}.{e}", d) for k, m in texts.items() for e, d in {"jpg": b"x", **m}.items()]))
    assert [s.caption for s in read_shard(str(path), Columns())] == ["text", "json", ""]


def test_no_shards(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ConfigError, match="no .tar or .parquet shards there"):
        list_shards(str(tmp_path))


def test_keys_begin_with_their_folder(tmp_path):
    assert key_prefix(str(tmp_path), str(tmp_path / "00000.tar")) == ""
    assert key_prefix(f"{tmp_path}/", str(tmp_path / "a/b/00000.tar")) == "a/b/"
    assert key_prefix("s3://bucket/crawl", "s3://bucket/crawl/part-1/00000.tar") == "part-1/"


def test_metadata_is_streamed_with_json_numbers(tmp_path):
    path = tmp_path / "00000.tar"
    path.write_bytes(tar_of([("a.jpg", b"x"), ("a.txt", b"t"), ("a.json", json.dumps({"punsafe": 0.5}).encode())]))
    assert next(read_shard(str(path), Columns())).record == {"punsafe": 0.5}


def test_crawl_on_a_store_that_fails_now_and_then(faulty_s3, make_shards, make_pictures, monkeypatch):
    """503 to every third request, and bodies cut: the same samples, each once."""
    uri, server = faulty_s3
    monkeypatch.setattr("pipelines.core.s3.CHUNK", 1 << 14)
    folder = make_shards(make_pictures(12), 4)
    for tar in sorted(folder.glob("*.tar"))[1:]:
        (folder / f"{tar.name}.gz").write_bytes(gzip.compress(tar.read_bytes()))
        tar.unlink()
    table = {"key": [f"p{i}" for i in range(50)], "jpg": [os.urandom(5000)] * 50, "caption": ["x"] * 50}
    pq.write_table(pa.table(table), folder / "table.parquet", row_group_size=20)
    for path in folder.iterdir():
        storage.put_file(path, f"{uri}/{path.name}")
    local = [s for shard in list_shards(str(folder)).values() for s in read_shard(shard, Columns())]
    refused = server.slow_down("GET", every=3)
    cut = server.cut(1000, "GET", every=4)
    far = [s for shard in list_shards(uri).values() for s in read_shard(shard, Columns())]
    assert far == local and len(far) == 12 + 50 + 1
    assert refused.struck > 3 and cut.struck > 3


def test_shard_that_cannot_be_had_is_not_a_damaged_one(faulty_s3, tmp_path, monkeypatch):
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
        samples = list(read_shard(str(tmp_path / name), Columns()))
        outcomes[any(s.problem for s in samples)] += 1
        assert samples and all(isinstance(s.key, str) and s.key.encode() for s in samples)
        assert len(samples) <= 3 * 40 + 1
    assert outcomes[True] > 30


def test_text_that_is_not_unicode_can_be_written_down(tmp_path):
    path = tmp_path / "00000.tar"
    path.write_bytes(tar_of([("a.jpg", b"x"), ("a.json", b'{"caption": "half \\ud83d a pair"}')]))
    (found,) = read_shard(str(path), Columns())
    assert pa.array([found.caption]).to_pylist() == ["half ? a pair"]
