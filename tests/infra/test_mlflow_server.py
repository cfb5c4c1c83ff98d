"""The server of infra/mlflow, with the command and settings of its manifest, for real: PostgreSQL where it is
installed, else SQLite; artifacts in an S3 bucket; accounts; runs written by Ray's workers."""

import base64
import json
import os
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow_server import serve_manifest, serve_mlflow
from PIL import Image
from postgres import Database, find_postgres, serve_postgres

from pipelines.core.config import RunSettings
from pipelines.core.tracking import MetricsRow, Tracker, open_run

ROOT = Path(__file__).parents[2]
PASSWORDS = {"postgres": "pg-password-91f", "admin": "admin-password-7c2", "flask": "flask-key-55d"}


@pytest.fixture(scope="module")
def server(tmp_path_factory, s3_server):
    """(address, folder with the log)"""
    folder = tmp_path_factory.mktemp("mlflow")
    with ExitStack() as stack:
        if find_postgres():
            database = stack.enter_context(serve_postgres(PASSWORDS["postgres"]))
        else:
            database = Database(f"sqlite:///{folder}/mlflow.db", {})
        secrets = {"AWS_ENDPOINT_URL": s3_server.url, "AWS_ACCESS_KEY_ID": "test-key-id"}
        secrets |= {"AWS_SECRET_ACCESS_KEY": "test-secret-key", "NO_PROXY": "127.0.0.1,localhost"}
        secrets["MLFLOW_ARTIFACTS_DESTINATION"] = "s3://mlflow-bucket/mlflow"
        secrets["MLFLOW_AUTH_ADMIN_PASSWORD"] = PASSWORDS["admin"]
        secrets["MLFLOW_FLASK_SERVER_SECRET_KEY"] = PASSWORDS["flask"]
        yield stack.enter_context(serve_manifest(folder, database, secrets)), folder


def ask(url, password="", host=""):
    """Status of a request."""
    headers = {"Host": host} if host else {}
    if password:
        headers["Authorization"] = "Basic " + base64.b64encode(f"admin:{password}".encode()).decode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def send(url, body, origin=""):
    """Status of a POST of JSON, from a page of `origin`."""
    headers = {"Content-Type": "application/json", **({"Origin": origin} if origin else {})}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers), timeout=20) as got:
            return got.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.fixture
def account(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORDS["admin"])


@pytest.mark.slow
@pytest.mark.ray
def test_runs_written_by_ray_workers_are_read_back(server, account, s3, local_ray):
    from pipelines.core import s3 as object_store

    url, folder = server
    object_store.client().create_bucket(Bucket="mlflow-bucket")
    names = ("NO_PROXY", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")

    @local_ray.remote(runtime_env={"env_vars": {name: os.environ[name] for name in names}})
    def train(uri, run_id, rank):
        tracker = Tracker(uri, run_id)
        tracker.log_rows(MetricsRow(step, 1000 * step, {f"train/loss_{rank}": 1 / step}) for step in range(1, 4))
        if rank == 1:  # as in a training: the first pictures of two at once would race for one row of MLflow's
            tracker.log_image_at_step("val/pictures", Image.new("RGB", (8, 8)), step=3)

    settings = RunSettings(storage=s3, tracking_uri=url, experiment="on a server")
    with open_run(settings, "finetune") as tracker:
        local_ray.get([train.remote(tracker.uri, tracker.run_id, rank) for rank in (1, 2)])
    client = MlflowClient(url)
    found = client.get_run(tracker.run_id)
    assert found.info.status == "FINISHED"
    assert found.data.metrics == {"train/loss_1": 1 / 3, "train/loss_2": 1 / 3}
    assert [m.value for m in client.get_metric_history(tracker.run_id, "train/loss_1")] == [1, 1 / 2, 1 / 3]
    pictures = [file.path for file in client.list_artifacts(tracker.run_id, "images")]
    assert len(pictures) >= 2
    kept = object_store.client().list_objects_v2(Bucket="mlflow-bucket")["Contents"]
    keys = [entry["Key"] for entry in kept if tracker.run_id in entry["Key"]]
    assert {key.rsplit("/", 1)[1] for key in keys} == {path.rsplit("/", 1)[1] for path in pictures}
    assert all(key.startswith("mlflow/") for key in keys)
    log = (folder / "log").read_text()
    assert not [secret for secret in (*PASSWORDS.values(), "test-secret-key") if secret in log]


@pytest.mark.slow
def test_unknown_accounts_and_hosts_are_refused(server):
    url, _ = server
    experiments = f"{url}/api/2.0/mlflow/experiments/get-by-name?experiment_name=Default"
    assert ask(f"{url}/health") == 200
    assert ask(experiments) == 401
    assert ask(experiments, "wrong") == 401
    assert ask(experiments, PASSWORDS["admin"]) == 200
    port = url.rsplit(":", 1)[1]
    assert ask(experiments, PASSWORDS["admin"], host="mlflow:5000") == 200
    assert ask(experiments, PASSWORDS["admin"], host=f"localhost:{port}") == 200
    assert ask(experiments, PASSWORDS["admin"], host="elsewhere.example") == 403


@pytest.mark.slow
def test_make_mlflow_answers_its_own_names_and_pages_alone(tmp_path, monkeypatch):
    """With the arguments of the Makefile: no other Host, no request that another site sends."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    recipe = (ROOT / "Makefile").read_text().partition("\nmlflow: ")[2].partition("bin/mlflow server")[2]
    arguments = recipe.partition("\n\n")[0].replace("\\\n", " ").replace("$(PORT)", "PORT").split()
    with serve_mlflow(tmp_path, arguments) as url:
        assert ask(f"{url}/health") == 200
        assert ask(url) == 200
        for host in ("elsewhere.example", f"elsewhere.example:{url.rsplit(':', 1)[1]}", "192.168.0.7"):
            assert ask(url, host=host) == 403, host
        create = f"{url}/api/2.0/mlflow/experiments/create"
        for origin in ("http://elsewhere.example", "null"):
            assert send(create, {"name": origin}, origin) == 403, origin
        assert send(create, {"name": "own"}, url) == send(create, {"name": "of a job"}) == 200
