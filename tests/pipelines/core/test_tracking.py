import json
import sqlite3
import subprocess
import sys
import threading

import pytest
from mlflow.tracking import MlflowClient
from PIL import Image

from pipelines.core.artifacts import Artifact
from pipelines.core.config import ConfigError, RunSettings
from pipelines.core.threads import run_in_thread
from pipelines.core.tracking import PARENT, Tracker, describe_ui, flatten, open_run, tracking_uri


@pytest.fixture(autouse=True)
def no_server(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One store for all tests here: making the tables takes seconds."""
    return RunSettings(storage=str(tmp_path_factory.mktemp("storage")), experiment="trial")


def test_store_is_named_absolutely(tmp_path, monkeypatch):
    """Workers have other working directories; a relative path would make each log to a stray database."""
    monkeypatch.chdir(tmp_path)
    assert tracking_uri(RunSettings(storage="runs/x")) == f"sqlite:///{tmp_path}/runs/x/mlflow.db"
    assert tracking_uri(RunSettings(tracking_uri="sqlite:///a/b.db")) == f"sqlite:///{tmp_path}/a/b.db"
    assert tracking_uri(RunSettings(tracking_uri=f"sqlite:///{tmp_path}/c.db")) == f"sqlite:///{tmp_path}/c.db"
    assert (tmp_path / "runs/x").is_dir()
    assert (tmp_path / "a").is_dir()


def test_server_comes_from_settings_then_environment(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example:5000")
    assert tracking_uri(RunSettings()) == "http://mlflow.example:5000"
    assert tracking_uri(RunSettings(storage="s3://bucket/x")) == "http://mlflow.example:5000"
    assert tracking_uri(RunSettings(tracking_uri="https://other.example")) == "https://other.example"


def test_ui_address(tmp_path):
    assert describe_ui(RunSettings(tracking_uri="http://server:5000")) == "http://server:5000"
    command = f".venv/bin/mlflow ui --backend-store-uri sqlite:///{tmp_path}/mlflow.db"
    assert describe_ui(RunSettings(storage=str(tmp_path))) == command


def test_stores_that_cannot_be_are_refused():
    with pytest.raises(
        ConfigError, match="run.tracking_uri: set the MLflow server .* cannot be stored in s3://bucket/x"
    ):
        tracking_uri(RunSettings(storage="s3://bucket/x"))
    with pytest.raises(ConfigError, match="run.tracking_uri='mlruns': must be sqlite:///PATH"):
        tracking_uri(RunSettings(tracking_uri="mlruns"))


def test_flatten():
    assert flatten({"a": 1, "b": {"c": [2], "d": {"e": None}}}) == {"a": 1, "b.c": [2], "b.d.e": None}


def test_run_holds_settings_numbers_images_and_lineage(run, tmp_path):
    source = Artifact(str(tmp_path / "curate/0123"), {"id": "0123", "step": "curate"})
    with open_run(run, "basis") as tracker:
        tracker.log_params({"rank": 128, "optim": {"lr": 1e-4}, "long": "x" * 9000})
        tracker.log_metrics({"loss": 1.0, "scale": 2.4}, step=3)
        tracker.log_input(source)
        tracker.log_image("tiles", Image.new("RGBA", (8, 8)))
        tracker.log_table("rejected", {"reason": ["too small"], "rows": [3]})
        tracker.set_tag("artifact", "somewhere")
    found = tracker.client.get_run(tracker.run_id)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "basis"
    assert found.data.params["rank"] == "128"
    assert found.data.params["optim.lr"] == "0.0001"
    assert found.data.metrics == {"loss": 1.0, "scale": 2.4}
    assert found.data.tags["artifact"] == "somewhere"
    (dataset,) = [entry.dataset for entry in found.inputs.dataset_inputs]
    assert (dataset.name, dataset.digest) == ("curate", "0123")
    assert json.loads(dataset.source)["uri"] == source.uri
    names = [file.path for folder in ("", "pictures") for file in tracker.client.list_artifacts(tracker.run_id, folder)]
    assert "pictures/tiles.png" in names
    assert "rejected.json" in names
    assert found.info.artifact_uri.startswith(run.storage)


def test_a_data_set_of_the_hub_is_a_link(run):
    with open_run(run, "curate") as tracker:
        tracker.log_dataset("source", "hf://datasets/owner/name@main/data", "0123")
    (entry,) = tracker.client.get_run(tracker.run_id).inputs.dataset_inputs
    assert json.loads(entry.dataset.source)["url"].endswith("/datasets/owner/name/tree/main/data")


def test_parameters_without_noise(run):
    """Nothing empty, and not where the run happens; zero and False say something."""
    with open_run(run, "finetune") as tracker:
        tracker.log_params(
            {
                "run": {"storage": "s3://bucket/x", "tracking_uri": "http://server"},
                "lora": {"rank": 4, "alpha": None}, "adapter": "", "leave_out": [], "floors": {}, "seed": 0,
                "clamp": False,
            }
        )  # fmt: skip
    params = tracker.client.get_run(tracker.run_id).data.params
    assert params == {"lora.rank": "4", "seed": "0", "clamp": "False"}


def test_failed_run_is_resumed(run):
    with pytest.raises(RuntimeError), open_run(run, "finetune") as first:
        first.log_params({"steps": 10})
        first.log_metrics({"loss": 2.0}, step=4)
        raise RuntimeError("killed")
    client = MlflowClient(first.uri)
    assert client.get_run(first.run_id).info.status == "FAILED"
    with open_run(run, "finetune", first.run_id) as second:
        assert client.get_run(first.run_id).info.status == "RUNNING"
        assert second.last_step("loss") == 4
        assert second.last_step("absent") == -1
        second.log_params({"steps": 20, "more": 1})
        second.log_metrics({"loss": 1.0}, step=5)
    found = client.get_run(first.run_id)
    assert second == first
    assert found.info.status == "FINISHED"
    assert found.data.params == {"steps": "10", "more": "1"}
    assert found.data.metrics["loss"] == 1.0
    assert [m.step for m in client.get_metric_history(first.run_id, "loss")] == [4, 5]


def test_interrupted_run_is_marked_failed(run):
    with pytest.raises(KeyboardInterrupt), open_run(run, "finetune") as tracker:
        raise KeyboardInterrupt
    assert tracker.client.get_run(tracker.run_id).info.status == "FAILED"


def test_an_interruption_marks_the_runs_of_other_threads_too(run):
    """Steps of a workflow run in threads, which end with the process."""
    opened, hold = threading.Event(), threading.Event()

    def work(parent):
        with open_run(run, "curate", parent=parent) as tracker:
            child.append(tracker.run_id)
            opened.set()
            hold.wait(60)

    child, client = [], MlflowClient(tracking_uri(run))
    with open_run(run, "finished", parent=None) as other:
        pass
    with pytest.raises(KeyboardInterrupt), open_run(run, "workflow") as tracker:
        step = run_in_thread(lambda: work(tracker.run_id), "curate")
        assert opened.wait(60)
        raise KeyboardInterrupt
    assert {client.get_run(run_id).info.status for run_id in (tracker.run_id, *child)} == {"FAILED"}
    assert client.get_run(other.run_id).info.status == "FINISHED"
    hold.set()
    step.result(60)


def test_an_unknown_run_is_replaced(run):
    with open_run(run, "curate", run_id="0" * 32) as tracker:
        assert tracker.run_id != "0" * 32


def test_steps_are_children_of_one_run_in_one_experiment(run):
    with open_run(run, "workflow") as parent, open_run(run, "curate", parent=parent.run_id) as child:
        pass
    assert child.client.get_run(child.run_id).data.tags[PARENT] == parent.run_id
    ids = {t.client.get_run(t.run_id).info.experiment_id for t in (parent, child)}
    assert ids == {parent.client.get_experiment_by_name("trial").experiment_id}


@pytest.mark.slow
def test_jobs_that_come_at_once_make_one_database(tmp_path):
    code = (
        "from pipelines.core.config import RunSettings; from pipelines.core.tracking import open_run\n"
        f"with open_run(RunSettings(storage={str(tmp_path)!r}), 'curate') as tracker: print(tracker.run_id)"
    )
    jobs = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    made = {job.communicate(timeout=120)[0].strip() for job in jobs}
    assert [job.returncode for job in jobs] == [0, 0, 0]
    assert len(made) == 3
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("asymflow").experiment_id
    assert {run.info.run_id for run in client.search_runs([experiment])} == made


def test_worker_elsewhere_writes_to_the_same_store(run, tmp_path, monkeypatch):
    with open_run(run, "finetune") as tracker:
        monkeypatch.chdir(tmp_path)
        Tracker(tracker.uri, tracker.run_id).log_metrics({"loss": 0.5})
    assert list(tmp_path.iterdir()) == []
    database = sqlite3.connect(tracker.uri.removeprefix("sqlite:///"))
    rows = database.execute("select value from metrics where run_uuid = ?", (tracker.run_id,)).fetchall()
    database.close()
    assert rows == [(0.5,)]
