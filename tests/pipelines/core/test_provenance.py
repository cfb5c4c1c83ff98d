import json

import pytest
from mlflow.tracking import MlflowClient

from pipelines.core.artifacts import Artifact
from pipelines.core.config import ConfigError, RunSettings, validate
from pipelines.core.provenance import describe, origin, read_run, submission_id, write_run
from pipelines.core.tracking import check_run, open_run, tracking_uri


@pytest.fixture(autouse=True)
def nowhere(monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_CONTEXT", "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return RunSettings(storage=str(tmp_path_factory.mktemp("storage")), experiment="trial")


def be_job(monkeypatch, name):
    config = {"metadata": {"job_submission_id": name}, "runtime_env": {}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(config))


def test_origin_has_the_code_the_image_and_the_jobs(monkeypatch):
    assert submission_id() == ""
    assert "ray_job" not in origin()
    assert len(origin()["code"]) == 17
    assert origin()["code"] == origin()["code"]
    be_job(monkeypatch, "raysubmit_1")
    monkeypatch.setenv("MLFLOW_RUN_CONTEXT", '{"image": "asymflow:1-cuda", "mlflow.source.git.commit": "abc"}')
    tags = origin()
    assert tags["ray_job"] == "raysubmit_1"
    assert tags["mlflow.source.type"] == "JOB"
    assert tags["image"] == "asymflow:1-cuda"
    assert tags["mlflow.source.git.commit"] == "abc"
    assert origin("raysubmit_0")["ray_job"] == "raysubmit_0, raysubmit_1"
    assert origin("raysubmit_0, raysubmit_1")["ray_job"] == "raysubmit_0, raysubmit_1"


def test_a_run_names_every_job_that_worked_on_it(run, monkeypatch):
    run_id = None
    for job in ("raysubmit_a", "raysubmit_b", "raysubmit_b"):
        be_job(monkeypatch, job)
        with open_run(run, "finetune", run_id) as tracker:
            run_id = tracker.run_id
    assert tracker.client.get_run(run_id).data.tags["ray_job"] == "raysubmit_a, raysubmit_b"


def test_a_page_links_to_its_inputs(run, tmp_path):
    curated = Artifact(str(tmp_path / "curate/0123456789"), {"id": "0123456789", "step": "curate"})
    elsewhere = Artifact(str(tmp_path / "basis/9876543210"), {"id": "9876543210", "step": "basis"})
    with open_run(run, "curate") as first:
        write_run(curated.uri, first.run_id)
    assert read_run(curated.uri) == first.run_id
    assert read_run(elsewhere.uri) == ""
    write_run(elsewhere.uri, "0" * 32)  # of another server
    with open_run(run, "encode") as second:
        page = describe(
            "there", {"curated": curated, "basis": elsewhere}, {"source": "s3://bucket/crawl"}, second.page_of
        )
    experiment = MlflowClient(tracking_uri(run)).get_run(first.run_id).info.experiment_id
    link = f"[curate 012345](#/experiments/{experiment}/runs/{first.run_id})"
    assert page == f"Made from {link}, basis 987654 (`{elsewhere.uri}`), `s3://bucket/crawl`\n\nArtifact `there`"
    assert describe("there", {}, {}, second.page_of) == "Artifact `there`"


@pytest.mark.parametrize(
    "uri",
    [
        "https://me:pass-word@server:5000",
        "postgresql://me:pass-word@host/db",
        "mysql://host/db?password=pass-word",
        "http://pass-word@server",
        "https://server/mlflow?token=pass-word",
        "https://server/?access_token=pass-word#x",
        "https://server/#api_key=pass-word",
        "http://server?X-Amz-Signature=pass-word",
    ],
)
def test_passwords_are_kept_out_of_addresses(uri, monkeypatch):
    """And out of the message that says so."""
    with pytest.raises(ConfigError, match="run.tracking_uri: holds a password or a token; pass") as error:
        validate(RunSettings, {"tracking_uri": uri}, "run")
    assert "pass-word" not in str(error.value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI: holds a password.*MLFLOW_TRACKING_TOKEN") as error:
        tracking_uri(RunSettings())
    assert "pass-word" not in str(error.value)


def test_passwords_are_kept_out_of_storage():
    with pytest.raises(ConfigError, match="run.storage: holds a password") as error:
        validate(RunSettings, {"storage": "s3://key:pass-word@bucket/prefix"}, "run")
    assert "pass-word" not in str(error.value)
    assert tracking_uri(RunSettings(tracking_uri="postgresql://me@host/db")) == "postgresql://me@host/db"


def test_storage_in_the_working_directory_is_refused(tmp_path, monkeypatch):
    package = tmp_path / "session/runtime_resources/working_dir_files/_ray_pkg_0"
    package.mkdir(parents=True)
    monkeypatch.chdir(package)
    with pytest.raises(ConfigError, match="run.storage='runs/demo': is in the job's working directory"):
        check_run(RunSettings(storage="runs/demo", tracking_uri="http://mlflow:5000"))
    check_run(RunSettings(storage=str(tmp_path / "runs"), tracking_uri="http://mlflow:5000"))
