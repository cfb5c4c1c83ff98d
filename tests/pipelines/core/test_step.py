"""How a step runs, without Ray: made once, found again, and told where it cannot be."""

import threading
import time

import pytest

from pipelines.core import storage
from pipelines.core.config import ConfigError, RunSettings
from pipelines.core.preflight import TrackingError
from pipelines.core.step import Step, StepSettings, run_step


class CountSettings(StepSettings):
    to: int = 3


@pytest.fixture(autouse=True)
def no_ray(monkeypatch):
    monkeypatch.setattr("pipelines.core.step.start_ray", lambda run: None)


@pytest.fixture
def step():
    """A step that takes a moment, and `built`, the settings that it was run with."""
    built = []

    def build(settings, context):
        built.append(settings)
        time.sleep(0.5)
        storage.write_bytes(context.file("numbers"), bytes(range(settings.to)))
        return {"count": settings.to}

    found = Step("count", CountSettings, build)
    return found, built


@pytest.mark.parametrize("place", ["local", "s3"])
def test_concurrent_runs_build_once(step, tmp_path, request, place, caplog):
    found, built = step
    where = str(tmp_path / "runs") if place == "local" else request.getfixturevalue("s3")
    run = RunSettings(storage=where, tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    outcomes = []
    jobs = [threading.Thread(target=lambda: outcomes.append(run_step(found, CountSettings(run=run)))) for _ in range(2)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(60)
    assert len(built) == 1
    assert sorted(outcome.reused for outcome in outcomes) == [False, True]
    assert outcomes[0].artifact.manifest == outcomes[1].artifact.manifest
    assert list(outcomes[0].artifact.manifest["files"]) == ["numbers"]
    assert caplog.text.count(": waiting until it ends") == 1


def test_a_cached_artifact_needs_no_server_and_no_write(step, tmp_path, monkeypatch, mlflow_store):
    found, built = step
    run = RunSettings(storage=str(tmp_path / "runs"), tracking_uri=mlflow_store)
    run_step(found, CountSettings(run=run))
    gone = run.model_copy(update={"tracking_uri": "http://127.0.0.1:1"})
    monkeypatch.setattr(storage, "_write_local", lambda *arguments: pytest.fail("something was written"))
    assert run_step(found, CountSettings(run=gone)).reused
    monkeypatch.undo()
    with pytest.raises(TrackingError, match="http://127.0.0.1:1 does not respond"):
        run_step(found, CountSettings(run=gone, to=4))
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="run.storage='.*': cannot write: Not a directory"):
        run_step(found, CountSettings(run=run.model_copy(update={"storage": str(tmp_path / "file/x")})))
    assert len(built) == 1
