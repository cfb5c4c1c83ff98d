"""What the outside world refuses is told in one line within seconds, and nothing half written stays."""

import os
import resource
import socket
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from pipelines.core import preflight, storage
from pipelines.core.config import ConfigError, RunSettings
from pipelines.core.preflight import TrackingError, check_destinations, check_storage, check_tracking
from pipelines.core.storage import StorageError
from pipelines.core.tracking import open_run, tracking_uri


@contextmanager
def files_of_at_most(size):
    """The kernel ends a write beyond it with an error, in its middle, as a quota does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_that_fails_in_its_middle_leaves_no_part(tmp_path):
    (tmp_path / "source").write_bytes(bytes(10_000))
    folder = tmp_path / "storage"
    with files_of_at_most(4096):
        with pytest.raises(StorageError, match="cannot write: File too large: '.*/storage/a'"):
            storage.write_bytes(str(folder / "a"), bytes(10_000))
        with pytest.raises(StorageError, match="cannot write: File too large"):
            storage.put_file(tmp_path / "source", str(folder / "b"))
        with pytest.raises(ConfigError, match=r"run.storage='.*/storage': cannot write: File too large; give a folder"):
            check_storage(RunSettings(storage=str(folder)))
    assert list(folder.iterdir()) == []
    check_storage(RunSettings(storage=str(folder)))
    assert list(folder.iterdir()) == []


def test_a_full_disk_is_a_storage_error(tmp_path, monkeypatch):
    write = storage._write_through
    monkeypatch.setattr(storage, "_write_through", lambda path, data: write(Path("/dev/full"), data))
    with pytest.raises(StorageError, match="run.storage='.*': cannot write: No space left on device; give a folder"):
        check_storage(RunSettings(storage=str(tmp_path / "runs")))


@pytest.mark.parametrize("place", ["file/below", "/sys/asymflow/runs", "/proc/asymflow"])
def test_a_storage_that_can_never_be_written(tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"^run.storage='[^']*': cannot write: \w.*; give a folder that this job may"):
        check_storage(RunSettings(storage=str(tmp_path / place)))


def test_the_database_beside_it_can_not_either(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"^run.storage: cannot create the folder .*/file/runs: Not a directory$"):
        check_destinations(RunSettings(storage=str(tmp_path / "file/runs")))
    with pytest.raises(ConfigError, match="^run.tracking_uri: cannot create the folder .*/file/x: "):
        check_destinations(RunSettings(storage=str(tmp_path), tracking_uri=f"sqlite:///{tmp_path}/file/x/mlflow.db"))


@pytest.mark.parametrize("bucket", ["bucket", "absent"])
def test_a_store_that_does_not_answer_or_has_no_such_bucket(s3, monkeypatch, bucket):
    run = RunSettings(storage=s3.replace("bucket", bucket), tracking_uri="http://127.0.0.1:1")
    if bucket == "bucket":
        check_destinations(run)
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    started = time.monotonic()
    with pytest.raises(StorageError, match="^s3://.*(NoSuchBucket|Could not connect to the endpoint URL)"):
        check_destinations(run)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("scheme", ["http", "postgresql+psycopg"])
@pytest.mark.parametrize("state", ["closed", "silent"])
def test_a_tracking_store_that_does_not_answer(tmp_path, monkeypatch, scheme, state):
    """Silent: it takes connections and says nothing, as a stopped process does."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setitem(preflight._QUICK, "MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setitem(preflight._QUICK, "PGCONNECT_TIMEOUT", "2")
    before = {name: value for name, value in os.environ.items()}
    with socket.create_server(("127.0.0.1", 0)) as server:
        uri = f"{scheme}://127.0.0.1:{server.getsockname()[1] if state == 'silent' else 1}/mlflow"
        started = time.monotonic()
        with pytest.raises(TrackingError, match="^the MLflow store at .* does not respond as expected: ") as error:
            check_tracking(RunSettings(storage=str(tmp_path), tracking_uri=uri))
    assert time.monotonic() - started < 15
    assert "\n" not in str(error.value)
    assert dict(os.environ) == before


def test_an_invalid_database_is_refused(tmp_path):
    (tmp_path / "mlflow.db").write_bytes(b"no database " * 500)
    with pytest.raises(TrackingError, match="mlflow.db does not respond as expected: .*not a database"):
        check_tracking(RunSettings(storage=str(tmp_path)))


def test_an_experiment_that_was_deleted_or_has_a_bad_name(tmp_path):
    run = RunSettings(storage=str(tmp_path), experiment="old")
    check_tracking(run)
    with open_run(run, "curate") as tracker:
        made = tracker.client.get_run(tracker.run_id).info.experiment_id
    client = MlflowClient(tracking_uri(run))
    assert client.get_experiment(made).name == "old"  # the check made it
    client.delete_experiment(made)
    with pytest.raises(ConfigError, match=f"run.experiment='old': was deleted at .*--experiment-id {made}"):
        check_tracking(run)
    for name in ("", "x" * 600):
        with pytest.raises(ConfigError, match=f"^run.experiment='{name}': "):
            check_tracking(run.model_copy(update={"experiment": name}))
