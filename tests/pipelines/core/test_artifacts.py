import hashlib
import json

import pytest

from pipelines.core import artifacts, storage
from pipelines.core.artifacts import MissingArtifact, artifact_id, hashed_settings, load_artifact, write_manifest
from pipelines.core.config import RunSettings, Settings, StepSettings, Uri, added
from pipelines.core.step import Step, identify


class Resources(Settings):
    workers: int = 1


class Example(StepSettings):
    curated: Uri = ""
    source: Uri = "data"
    rank: int = 128
    resources: Resources = Resources()


STEP = Step("example", Example, lambda settings, context: {}, inputs={"curated": "curate"}, contents=("source",))


def make(folder, step="example", identity="abc"):
    return write_manifest(storage.absolute(str(folder)), step, identity, Example(), {"curated": "123"}, {"rows": 3})


def test_manifest_makes_the_artifact(tmp_path):
    storage.write_bytes(str(tmp_path / "train/b.parquet"), b"bytes")
    with pytest.raises(MissingArtifact, match=r"no finished example artifact .*python jobs/example.py CONFIG.yaml"):
        load_artifact(str(tmp_path), "example")
    assert make(tmp_path) == load_artifact(str(tmp_path), "example")


def test_manifest_lists_inputs_and_files(tmp_path):
    storage.write_bytes(str(tmp_path / "train/b.parquet"), b"bytes")
    storage.write_bytes(str(tmp_path / "train/a.parquet"), b"")
    storage.write_bytes(str(tmp_path / "other/a.parquet"), b"1")
    storage.write_bytes(str(tmp_path / ".done/a.json"), b"{}")
    storage.write_bytes(str(tmp_path / "train/c.parquet.0.partial"), b"half")
    artifact = make(tmp_path)
    assert set(artifact.manifest["files"]) == {"train/a.parquet", "train/b.parquet", "other/a.parquet"}
    assert artifact.manifest["files"]["train/b.parquet"] == {
        "sha256": hashlib.sha256(b"bytes").hexdigest(),
        "bytes": 5,
    }
    assert (artifact.id, artifact.step) == ("abc", "example")
    assert artifact.manifest["inputs"] == {"curated": "123"}
    assert artifact.manifest["metrics"] == {"rows": 3}
    assert artifact.manifest["config"]["rank"] == 128
    assert set(artifact.manifest["versions"]) == set(artifacts.VERSIONED)
    json.loads((tmp_path / "manifest.json").read_text())
    assert artifact.files("train", ".parquet") == [artifact.file("train/a.parquet"), artifact.file("train/b.parquet")]


def test_files_outside_the_manifest_are_ignored(tmp_path):
    artifact = make(tmp_path)
    storage.write_bytes(str(tmp_path / "train/late.parquet"), b"late")
    assert artifact.files("train", ".parquet") == []


def test_another_steps_artifact_is_refused(tmp_path):
    make(tmp_path, step="curate")
    with pytest.raises(MissingArtifact, match="is an artifact of curate, not of basis"):
        load_artifact(str(tmp_path), "basis")


def test_id_depends_on_settings_and_inputs():
    ids = {
        artifact_id("a", {"x": 1}, {}),
        artifact_id("b", {"x": 1}, {}),
        artifact_id("a", {"x": 2}, {}),
        artifact_id("a", {"x": 1}, {"curated": "1"}),
        artifact_id("a", {"x": 1}, {"curated": "2"}),
    }
    assert len(ids) == 5
    assert artifact_id("a", {"x": 1, "y": 2}, {}) == artifact_id("a", {"y": 2, "x": 1}, {})


def test_id_does_not_depend_on_where_a_step_runs(tmp_path):
    here = Example()
    there = Example(run=RunSettings(storage="s3://bucket/x", experiment="b"), resources=Resources(workers=8))
    assert hashed_settings(here) == hashed_settings(there) == {"curated": "", "source": "data", "rank": 128}
    assert identify(STEP, here, {}) == identify(STEP, there, {})
    assert identify(STEP, here, {}) != identify(STEP, Example(rank=64), {})


def test_id_depends_on_inputs_ids_not_on_their_uris(tmp_path):
    one, same = (make(tmp_path / name, step="curate", identity="1") for name in ("a", "b"))
    other = make(tmp_path / "c", step="curate", identity="2")
    ids = [identify(STEP, Example(curated=a.uri), {"curated": a}) for a in (one, same, other)]
    assert ids[0] == ids[1] != ids[2]


def test_id_depends_on_the_content_of_external_folders(tmp_path):
    for name in ("a", "b"):
        storage.write_bytes(str(tmp_path / name / "weights"), b"1")
    first, second = (identify(STEP, Example(source=str(tmp_path / name)), {}) for name in ("a", "b"))
    assert first == second
    storage.write_bytes(str(tmp_path / "b/weights"), b"2")
    assert identify(STEP, Example(source=str(tmp_path / "b")), {}) != first


class Later(Example):
    """The same step after two settings were added to it."""

    class Section(Settings):
        old: int = 1
        new: str | None = added(None)

    section: Section = Section()
    newer: int = added(3, ge=1)


def test_added_settings_at_their_default_are_not_hashed():
    assert hashed_settings(Later()) == {**hashed_settings(Example()), "section": {"old": 1}}
    assert hashed_settings(Later(newer=4)) == {**hashed_settings(Later()), "newer": 4}
    changed = Later(section=Later.Section(new="a"))
    assert hashed_settings(changed) == {**hashed_settings(Later()), "section": {"old": 1, "new": "a"}}
    assert changed.model_dump()["newer"] == 3  # in the manifest they stand all the same
