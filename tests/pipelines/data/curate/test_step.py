import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from own_images import IMAGE, table, write
from tars import sample, tar_of

from pipelines.core import storage
from pipelines.core.config import ConfigError, RunSettings
from pipelines.core.step import run_step
from pipelines.core.workers import Workers
from pipelines.data.curate.config import CurateSettings
from pipelines.data.curate.filters import Filters
from pipelines.data.curate.samples import Columns
from pipelines.data.curate.shard_reader import read_shard
from pipelines.data.curate.sources import find_source
from pipelines.data.curate.step import STEP, check, filters_of
from pipelines.data.images import decode_image
from pipelines.data.split import is_held_out
from pipelines.toy.data import _faulty_images, write_img2dataset

FAULTS = {  # one of each in the demo's faulty rows, and what lies among the shards besides
    "truncated or corrupt": 1, "not an image": 2, "too many pixels": 1, "punsafe above the threshold": 1,
    "aesthetic below the threshold": 1, "pwatermark above the threshold": 1, "similarity below the threshold": 1,
    "empty caption": 1, "too small": 1, "too elongated": 1, "no aesthetic score": 1, "failed download": 1,
    "duplicate": 1, "unsafe path in tar": 1, "no readable shard": 1, "tar cut off": 1,
}  # fmt: skip


@pytest.mark.parametrize("size", [(64, 60), (0, 64), (8, 8)])
def test_buckets_are_whole_patches(make_shards, make_images, size):
    settings = CurateSettings(source=str(make_shards(make_images(3))), buckets=[size])
    with pytest.raises(ConfigError, match=f"buckets: {size[0]}x{size[1]}: width and height must be multiples of 16"):
        check(settings)


def test_sources_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no images there"):
        check(CurateSettings(source=str(tmp_path)))
    pq.write_table(pa.table({"key": ["a"]}), tmp_path / "00000.parquet")
    with pytest.raises(ConfigError, match="columns.image='jpg': .* no such column; it has key"):
        check(CurateSettings(source=str(tmp_path)))


def to_parquet(tar_folder, path):
    """What stands in the tar of a folder, as a parquet shard."""

    samples = [s for s in read_shard(str(tar_folder / "00000.tar"), Columns()) if not s.problem]
    rows = [{**s.record, "key": s.key, "jpg": s.image, "caption": s.caption} for s in samples]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)


def test_a_source_is_listed_once_per_run(make_shards, make_images, monkeypatch):
    from pipelines.data.curate import step

    settings, listed = CurateSettings(source=str(make_shards(make_images(3)))), []
    monkeypatch.setattr(step, "find_source", lambda *arguments: listed.append(arguments) or find_source(*arguments))
    step.hash_overrides(settings, {})
    check(settings)
    check(settings)
    assert len(listed) == 1
    check(settings.model_copy())
    assert len(listed) == 2  # other settings: another run
    step.hash_overrides(settings, {})
    step.hash_overrides(settings, {})
    assert len(listed) == 4  # a run sees what was added to the source since the one before


@pytest.fixture(scope="module")
def source(tmp_path_factory, make_images):
    """Tars with the demo's faulty rows, one exact repetition, and good pictures around them; a parquet shard in
    another folder with the same keys; a parquet and a tar that are none; two joined tars of one name each."""
    folder = tmp_path_factory.mktemp("source") / "shards"
    good = make_images(62)
    write_img2dataset(iter([*good[:20], *_faulty_images(), *good[20:40], good[0]]), folder, shard_size=25)
    write_img2dataset(iter(good[40:60]), folder.with_name("other"))
    (folder / "more").mkdir()
    to_parquet(folder.with_name("other"), folder / "more" / "00000.parquet")
    (folder / "more" / "00001.parquet").write_bytes(b"no parquet")
    (folder / "more" / "00002.tar").write_bytes(b"")
    scores = json.dumps({"aesthetic": 6.0, "punsafe": 0.1, "pwatermark": 0.1, "similarity": 0.3}).encode()
    parts = [tar_of(sample("IMG 2.0", p.image, p.caption.encode(), scores)) for p in good[60:]]
    (folder / "more" / "photos.tar").write_bytes(b"".join(parts))
    return folder


@pytest.fixture(scope="module")
def settings(source, tmp_path_factory):
    run = RunSettings(storage=str(tmp_path_factory.mktemp("storage")))
    return CurateSettings(source=str(source), run=run, buckets=[(64, 64), (96, 80)], held_out_every=4, rows_per_file=20)


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
    assert Counter(row["caption"] for row in kept) == Counter(f"picture {i}" for i in range(62))
    metadata = [k for f in sorted(source.glob("*.parquet")) for k in pq.read_table(f)["key"].to_pylist()]
    metadata += [f"more/{k}" for k in pq.read_table(source / "more" / "00000.parquet")["key"].to_pylist()]
    metadata += ["more/photos.tar/IMG 2.0", "more/photos.tar/IMG 2.0#2"]
    extra = {"00000.tar/../../outside", "more/00001.parquet", "more/00002.tar"}
    assert Counter(r["key"] for r in kept + rejected if r["key"] not in extra) == Counter(metadata)
    metrics = outcome.artifact.manifest["metrics"]
    assert metrics["rejected"] == sum(FAULTS.values())
    assert metrics["shards"] == 7
    assert metrics["kept_train"] + metrics["kept_held_out"] == 62


@pytest.mark.ray
def test_output_has_the_documented_layout(outcome):
    files = outcome.artifact.files("train", ".parquet") + outcome.artifact.files("held_out", ".parquet")
    for file in files:
        schema = pq.read_schema(file)
        assert {field.name: str(field.type) for field in schema} == {
            "key": "string", "image": "binary", "caption": "string", "width": "int32", "height": "int32",
            "bucket": "string", "aesthetic": "float", "punsafe": "float", "sha256": "string", "label": "int32",
        }  # fmt: skip
        rows = pq.read_table(file).to_pylist()
        (bucket,) = {row["bucket"] for row in rows}
        assert Path(file).stem.startswith(bucket)
        assert 0 < len(rows) <= 20
        for row in rows:
            assert decode_image(row["image"]).size == (row["width"], row["height"])
            assert bucket == f"{row['width']}x{row['height']}"
    names = {tuple(pq.read_schema(f).names) for f in outcome.artifact.files("rejected", ".parquet")}
    assert names == {("key", "reason", "duplicate_of")}
    assert not any(".staged" in f for f in outcome.artifact.manifest["files"])
    left = [p.name for p in Path(outcome.artifact.uri, ".staged").rglob("*.parquet")]
    assert left == []


@pytest.mark.ray
def test_report_for_people(outcome):
    report = json.loads(storage.read_bytes(outcome.artifact.file("report.json")))
    assert report["rejected"] == FAULTS
    assert sum(report["kept"].values()) == 62
    assert sum(report["histograms"]["kept"]["aesthetic"]) == 63  # the duplicate passed the filters
    pictures = Path(outcome.artifact.uri).parents[1].rglob("pictures/*.png")
    assert {"curation.png", "curated.png"} <= {p.name for p in pictures}


@pytest.mark.ray
def test_split_follows_the_key(outcome):
    for folder, held_out in (("train", False), ("held_out", True)):
        rows = rows_of(outcome, folder)
        assert rows
        assert all(is_held_out(row["key"], 4) == held_out for row in rows)


@pytest.mark.ray
def test_a_complete_artifact_is_not_rebuilt(outcome, settings):
    again = run_step(STEP, settings)
    assert again.reused
    assert again.artifact == outcome.artifact
    assert again.mlflow_run == outcome.mlflow_run


@pytest.mark.ray
def test_resuming_after_a_kill_writes_the_missing_files(outcome, settings, monkeypatch):
    """As if killed before one file of the plan was written: staged rows still stand then."""
    folder = Path(outcome.artifact.uri)
    before = files_of(folder)
    name = "train/96x80-00000"
    (folder / "manifest.json").unlink()
    for path in sorted((folder / ".done").iterdir()):
        assert path.name in ("read", "write")
    (folder / ".done/write" / f"{name.replace('/', '%2F')}.json").unlink()
    (folder / f"{name}.parquet").unlink()
    (folder / f"{name}.parquet.0123.partial").write_bytes(b"half")
    restage(folder, settings)
    again = run_step(STEP, settings)
    assert not again.reused
    assert again.mlflow_run == outcome.mlflow_run
    assert again.artifact.manifest == outcome.artifact.manifest
    after = files_of(folder)
    assert [name for name in before if before[name] != after[name]] == ["train/96x80-00000.parquet"]


def files_of(folder):
    return {
        path.relative_to(folder).as_posix(): path.stat().st_mtime_ns
        for split in ("train", "held_out")
        for path in (folder / split).glob("*.parquet")
    }


def restage(folder, settings):
    """Stage all shards anew, in a folder of their own, and bring what was staged back."""
    from pipelines.data.curate.shard import ShardCurator
    from pipelines.data.curate.sources import find_source

    other = folder.with_name("other")
    for name, shard in find_source(settings.source, Columns()).shards.items():
        ShardCurator(settings, str(other))(json.dumps([name, shard, None]))
    for path in (other / ".staged").rglob("*.parquet"):
        target = folder / path.relative_to(other)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)


@pytest.mark.ray
def test_killed_while_staged_files_are_deleted(outcome, settings):
    folder = Path(outcome.artifact.uri)
    (folder / "manifest.json").unlink()
    again = run_step(STEP, settings)
    assert not again.reused
    assert again.artifact.manifest == outcome.artifact.manifest


@pytest.mark.ray
def test_number_of_workers_changes_nothing(outcome, settings, tmp_path):
    run = RunSettings(storage=str(tmp_path))
    alone = run_step(STEP, settings.model_copy(update={"run": run, "resources": Workers(workers=1)}))
    assert alone.artifact.id == outcome.artifact.id
    assert alone.artifact.manifest["files"] == outcome.artifact.manifest["files"]


@pytest.mark.ray
def test_no_accepted_image_is_an_error(settings, local_ray, tmp_path):
    run = RunSettings(storage=str(tmp_path))
    strict = settings.model_copy(update={"run": run, "filters": Filters(min_aesthetic=9.9)})
    with pytest.raises(ConfigError, match="none to train on; rejected: {'aesthetic below the threshold'"):
        run_step(STEP, strict)


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
