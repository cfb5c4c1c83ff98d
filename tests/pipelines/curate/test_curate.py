import bz2
import gzip
import hashlib
import io
import json
import math
import tarfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import storage
from pipelines.config import ConfigError, RunSettings
from pipelines.curate import (
    IMAGE_EXTENSIONS,
    STEP,
    CurateSettings,
    Filters,
    ShardCurator,
    best_bucket,
    check,
    read_samples,
    repeated_pictures,
)
from pipelines.images import decode_image
from pipelines.shards import Workers
from pipelines.split import is_held_out
from pipelines.steps import run_step
from pipelines.toy.data import _faulty_pictures, write_img2dataset

FAULTS = {  # one of each in the demo's faulty rows
    "truncated or corrupt": 1, "not an image": 2, "too many pixels": 1, "punsafe above the threshold": 1,
    "aesthetic below the threshold": 1, "pwatermark above the threshold": 1, "similarity below the threshold": 1,
    "empty caption": 1, "too small": 1, "too elongated": 1, "no aesthetic score": 1, "failed download": 1,
    "duplicate": 1, "unsafe path in tar": 1,
}  # fmt: skip
SCORES = {"aesthetic": 6.0, "punsafe": 0.1, "pwatermark": 0.1, "similarity": 0.3}


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
def samples_of(tmp_path):
    """Write bytes as a tar and read it back."""

    def read(data):
        path = tmp_path / "00000.tar"
        path.write_bytes(data)
        return list(read_samples(str(path)))

    return read


@pytest.fixture
def curator(tmp_path):
    return ShardCurator(CurateSettings(source="data"), str(tmp_path / "out"), {})


def test_samples_are_adjacent_members_of_a_key(samples_of):
    samples = samples_of(tar_of(sample("a") + sample("folder/b") + sample("c")))
    assert [key for key, _ in samples] == ["a", "b", "c"]
    assert all(set(members) == {"jpg", "txt", "json"} for _, members in samples)
    assert samples[1][1]["txt"] == b"caption"


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress])
def test_compressed_tar(samples_of, compress):
    data = tar_of(sample("a") + sample("b"))
    assert samples_of(compress(data)) == samples_of(data)


@pytest.mark.parametrize("name", ["../../outside.jpg", "/etc/outside.jpg", "a/../../outside.jpg"])
def test_paths_that_lead_out_are_named_and_not_followed(samples_of, tmp_path, name):
    samples = samples_of(tar_of(sample("a") + [(name, b"evil")] + sample("b")))
    assert [key for key, _ in samples if key in "ab"] == ["a", "b"]
    assert (name, {"unsafe path": b""}) in samples
    assert [path.name for path in tmp_path.rglob("*")] == ["00000.tar"]


def test_links_are_not_followed(samples_of):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        link = tarfile.TarInfo("a.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    assert samples_of(buffer.getvalue()) == [("a.jpg", {"unsafe path": b""})]


def test_names_that_are_not_utf8_can_be_written_down(samples_of):
    data = tar_of(sample("a")).replace(b"a.jpg", b"\xff.jpg")
    header = bytearray(data)
    header[148:156] = b" " * 8  # the checksum of a header counts itself as blanks
    header[148:156] = f"{sum(header[:512]):06o}\0 ".encode()
    keys = [key for key, _ in samples_of(bytes(header))]
    assert keys == ["?", "a"] and pa.array(keys).to_pylist() == keys


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_tar_cut_off_in_the_middle(samples_of, compress):
    noise = b"".join(hashlib.sha256(bytes([i % 256, i // 256])).digest() for i in range(2000))
    data = compress(tar_of([(name, noise if name.endswith("jpg") else b"") for k in "abc" for name, _ in sample(k)]))
    samples = samples_of(data[: len(data) // 2])
    assert samples[0][0] == "a" and "cut off" not in samples[0][1]
    assert samples[-1][0] == "b" and "cut off" in samples[-1][1]


@pytest.mark.parametrize("data", [b"", b"no tar at all" * 100, gzip.compress(b"")[:5]])
def test_what_is_no_tar_is_not_passed_over(samples_of, data):
    (key, members), *more = samples_of(data)
    assert "cut off" in members and key.endswith("-00000") and not more


def test_store_that_fails_is_not_a_tar_cut_off(tmp_path):
    with pytest.raises(OSError):
        list(read_samples(str(tmp_path / "absent.tar")))


def test_rows_the_tar_lost_are_counted(tmp_path, make_shards, make_pictures):
    """Cut between two members, where tarfile sees nothing wrong: the metadata knows what is missing."""
    shard = make_shards(make_pictures(6)) / "00000.tar"
    with tarfile.open(shard) as tar:
        third = tar.getmember("000000003.jpg").offset
    shard.write_bytes(shard.read_bytes()[:third])
    summary = ShardCurator(CurateSettings(source=str(shard.parent)), str(tmp_path / "out"), {})(str(shard))
    assert summary["kept"].total() == 3 and summary["rejected"] == {"not in the tar": 3}


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("score", [None, "high", math.nan, math.inf, -math.inf, 10**400])
def test_scores_that_are_no_numbers(curator, name, score):
    with pytest.raises(Exception, match=f"no {name} score"):
        curator.judge({**SCORES, name: score})


def test_thresholds_include_their_ends(curator):
    f = Filters()
    ends = {"aesthetic": f.min_aesthetic, "punsafe": f.max_punsafe, "pwatermark": f.max_pwatermark}
    curator.judge({**ends, "similarity": f.min_similarity})
    for name, step, word in (("aesthetic", -1e-3, "below"), ("punsafe", 1e-3, "above"), ("similarity", -1e-3, "below")):
        with pytest.raises(Exception, match=f"{name} {word} the threshold"):
            curator.judge({**ends, "similarity": f.min_similarity, name: {**ends, "similarity": 0.2}[name] + step})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"json": b"[]"}, "no readable metadata"),
        ({"json": b"{"}, "no readable metadata"),
        ({"json": b"[" * 100_000}, "no readable metadata"),
        ({"json": None}, "no readable metadata"),
        ({"txt": b"\xff\xfe"}, "no readable metadata"),
        ({"txt": None}, "no readable metadata"),
        ({"txt": b" \n"}, "empty caption"),
        ({"jpg": None}, "no picture"),
        ({"jpg": b""}, "not an image"),
    ],
)
def test_rows_that_are_no_samples(curator, make_pictures, change, reason):
    members = {"jpg": make_pictures(1)[0].image, "txt": b"caption", "json": json.dumps(SCORES).encode()}
    assert curator.curate("key", members)["caption"] == "caption"
    with pytest.raises(Exception, match=reason):
        curator.curate("key", {k: v for k, v in {**members, **change}.items() if v is not None})


def test_extensions(curator, make_pictures):
    record = {"txt": b"caption", "json": json.dumps(SCORES).encode()}
    for extension in IMAGE_EXTENSIONS:
        assert curator.curate("key", {extension: make_pictures(1)[0].image, **record})["key"] == "key"


def test_best_bucket_crops_least():
    buckets = [(64, 64), (96, 48), (48, 96)]
    assert best_bucket(100, 101, buckets) == (64, 64)
    assert best_bucket(300, 160, buckets) == (96, 48)
    assert best_bucket(16, 40, buckets) == (48, 96)
    wide = best_bucket(141, 100, buckets), best_bucket(142, 100, buckets)
    assert wide == ((64, 64), (96, 48))  # the border between 1:1 and 2:1 lies at the root of 2


def test_repeated_pictures_keep_the_first_key(tmp_path):
    rows = [("3", "x"), ("1", "y"), ("2", "x"), ("4", None), ("5", None), ("6", "x")]
    for part in range(2):
        table = pa.table({"key": [k for k, _ in rows[part::2]], "sha256": [h for _, h in rows[part::2]]})
        pq.write_table(table, tmp_path / f"{part}.parquet")
    assert repeated_pictures([str(tmp_path / f"{part}.parquet") for part in range(2)]) == {"x": "2"}


def test_repeats_are_found_by_the_hash_of_what_was_downloaded(tmp_path, make_pictures):
    """img2dataset encodes anew after hashing, so the bytes in the tar have another hash."""
    curator = ShardCurator(CurateSettings(source="data"), str(tmp_path), {"abc": "first"})
    record = json.dumps({**SCORES, "sha256": "abc"}).encode()
    members = {"jpg": make_pictures(1)[0].image, "txt": b"caption", "json": record}
    assert curator.curate("first", members)["sha256"] == "abc"
    with pytest.raises(Exception, match="duplicate"):
        curator.curate("second", members)


def test_held_out_split_is_stable():
    """Pinned: another split would put pictures of old evaluations into training."""
    keys = [f"{i:09d}" for i in range(4096)]
    held_out = [key for key in keys if is_held_out(key, 16)]
    assert held_out[:4] == ["000000001", "000000029", "000000036", "000000048"]
    assert 200 < len(held_out) < 312


def test_shards_of_one_number_in_two_folders_stay_apart(tmp_path, make_pictures):
    for part, first in (("a", 0), ("b", 30)):
        write_img2dataset(iter(make_pictures(20, first)), tmp_path / "in" / part)
    settings = CurateSettings(source=str(tmp_path / "in"))
    check(settings)
    for part in "ab":
        ShardCurator(settings, str(tmp_path / "out"), {})(str(tmp_path / "in" / part / "00000.tar"))
    tables = [pq.read_table(file) for file in storage.list_files(str(tmp_path / "out/train"))]
    assert len(set(pa.concat_tables(tables)["caption"].to_pylist())) == sum(len(t) for t in tables) > 30


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "00000.parquet").unlink(), "00000.tar has no metadata parquet beside it"),
        (lambda folder: [p.unlink() for p in folder.glob("*.tar")], "no .tar shards there"),
        (lambda folder: write_twice(folder), "two shards have one name"),
    ],
)
def test_sources_that_cannot_be_read_are_refused(make_shards, make_pictures, change, message):
    folder = make_shards(make_pictures(3))
    settings = CurateSettings(source=str(folder))
    check(settings)
    change(folder)
    with pytest.raises(ConfigError, match=message):
        check(settings)


def write_twice(folder):
    for part in "ab":
        (folder / part / "x").mkdir(parents=True)
        (folder / part / "x" / "00000.tar").touch()


@pytest.mark.parametrize("size", [(64, 60), (0, 64), (8, 8)])
def test_buckets_are_whole_patches(make_shards, make_pictures, size):
    settings = CurateSettings(source=str(make_shards(make_pictures(3))), buckets=[size])
    with pytest.raises(ConfigError, match=f"buckets: {size[0]}x{size[1]} is not made of multiples of 16"):
        check(settings)


@pytest.fixture(scope="module")
def source(tmp_path_factory, make_pictures):
    """Three shards: the demo's faulty rows, one exact repetition, and good pictures around them."""
    folder = tmp_path_factory.mktemp("source") / "shards"
    good = make_pictures(60)
    write_img2dataset(iter([*good[:30], *_faulty_pictures(), *good[30:], good[0]]), folder, shard_size=25)
    return folder


@pytest.fixture(scope="module")
def settings(source, tmp_path_factory):
    run = RunSettings(storage=str(tmp_path_factory.mktemp("storage")))
    return CurateSettings(source=str(source), run=run, buckets=[(64, 64), (96, 64)], held_out_every=4)


@pytest.fixture(scope="module")
def outcome(settings, local_ray):
    return run_step(STEP, settings)


def rows_of(outcome, folder):
    return [r for f in outcome.artifact.files(folder, ".parquet") for r in pq.read_table(f).to_pylist()]


@pytest.mark.ray
def test_every_row_is_kept_or_rejected_with_its_reason(outcome, source):
    rejected = rows_of(outcome, "rejected")
    assert Counter(row["reason"] for row in rejected) == FAULTS
    kept = rows_of(outcome, "train") + rows_of(outcome, "held_out")
    assert {row["caption"] for row in kept} == {f"picture {i}" for i in range(60)}
    metadata = [k for f in sorted(source.glob("*.parquet")) for k in pq.read_table(f)["key"].to_pylist()]
    assert sorted([r["key"] for r in kept + rejected if r["key"] != "../../outside.jpg"]) == metadata
    metrics = outcome.artifact.manifest["metrics"]
    assert metrics["rejected"] == sum(FAULTS.values()) and metrics["shards"] == 3
    assert metrics["kept_train"] + metrics["kept_held_out"] == 60


@pytest.mark.ray
def test_output_is_what_the_design_says(outcome):
    files = outcome.artifact.files("train", ".parquet") + outcome.artifact.files("held_out", ".parquet")
    assert len(files) == 6
    for file in files:
        schema = pq.read_schema(file)
        assert {field.name: str(field.type) for field in schema} == {
            "key": "string", "image": "binary", "caption": "string", "width": "int32", "height": "int32",
            "bucket": "string", "aesthetic": "float", "punsafe": "float", "sha256": "string",
        }  # fmt: skip
        rows = pq.read_table(file).to_pylist()
        assert {row["bucket"] for row in rows} == {"64x64"} and Path(file).stem.endswith("-64x64")
        for row in rows:
            assert decode_image(row["image"]).size == (row["width"], row["height"]) == (64, 64)
    rejected = outcome.artifact.files("rejected", ".parquet")
    assert len(rejected) == 3 and {tuple(pq.read_schema(f).names) for f in rejected} == {("key", "reason")}


@pytest.mark.ray
def test_split_follows_the_key(outcome):
    for folder, held_out in (("train", False), ("held_out", True)):
        rows = rows_of(outcome, folder)
        assert rows and all(is_held_out(row["key"], 4) == held_out for row in rows)


@pytest.mark.ray
def test_artifact_that_stands_is_not_made_again(outcome, settings):
    again = run_step(STEP, settings)
    assert again.reused and again.artifact == outcome.artifact and again.mlflow_run == outcome.mlflow_run


@pytest.mark.ray
def test_killed_half_way_does_only_the_rest(outcome, settings):
    folder = Path(outcome.artifact.uri)
    (folder / "manifest.json").unlink()
    (folder / ".done/shards-00001.json").unlink()
    (folder / "train/shards-00001-64x64.parquet").write_bytes(b"of another try")
    (folder / "train/shards-00002-64x64.parquet.0123.partial").write_bytes(b"half")
    before = {path.name: path.stat().st_mtime_ns for path in (folder / "train").iterdir()}
    again = run_step(STEP, settings)
    assert not again.reused and again.mlflow_run == outcome.mlflow_run
    assert again.artifact.manifest == outcome.artifact.manifest
    after = {path.name: path.stat().st_mtime_ns for path in (folder / "train").iterdir()}
    assert [name for name in before if before[name] != after[name]] == ["shards-00001-64x64.parquet"]


@pytest.mark.ray
def test_number_of_workers_changes_nothing(outcome, settings, tmp_path):
    run = RunSettings(storage=str(tmp_path))
    alone = run_step(STEP, settings.model_copy(update={"run": run, "resources": Workers(workers=1)}))
    assert alone.artifact.id == outcome.artifact.id
    assert alone.artifact.manifest["files"] == outcome.artifact.manifest["files"]


@pytest.mark.ray
def test_nothing_left_is_an_error(settings, local_ray, tmp_path):
    run = RunSettings(storage=str(tmp_path))
    strict = settings.model_copy(update={"run": run, "filters": Filters(min_aesthetic=9.9)})
    with pytest.raises(ConfigError, match="nothing to train or test on"):
        run_step(STEP, strict)
