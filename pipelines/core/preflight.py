"""Whether the places that a job needs answer, told in one line within seconds, before Ray starts.

Once at work, a job waits out what passes. One that only begins would wait in silence for what will never be.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy
from mlflow.entities import LifecycleStage
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, ErrorCode

from pipelines.core import s3, storage
from pipelines.core.config import ConfigError, RunSettings
from pipelines.core.storage import StorageError
from pipelines.core.tracking import check_run, experiment_of, open_store, tracking_uri

_MAY_PASS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE)  # the setting may be right all the same
_SECONDS = 5
_QUICK = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": str(_SECONDS),
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "PGCONNECT_TIMEOUT": str(_SECONDS),
}
_BY_HTTP = ("http://", "https://", "databricks")


class TrackingError(MlflowException):
    """The MLflow store does not answer, or refuses; the message says which and why. Exit status 1."""


def check_places(run: RunSettings) -> None:
    """What has to be there even to find that a job is done. Raises ConfigError or StorageError."""
    check_run(run)
    if not storage.is_local(run.storage):
        s3.check_reachable(run.storage)


def check_work(run: RunSettings) -> None:
    """What a job needs that will make something. Raises ConfigError, StorageError or TrackingError."""
    check_places(run)
    check_storage(run)
    check_tracking(run)


def check_storage(run: RunSettings) -> None:
    """Raise ConfigError for a local storage that can never be written to, StorageError for one that is full."""
    if not storage.is_local(run.storage):
        return  # the lease of the artifact is written before anything else
    try:
        storage.check_writable(run.storage)
    except StorageError as error:
        message = f"run.storage={run.storage!r}: {error.strerror}; give a folder that this job may write to"
        if error.errno in _MAY_PASS:
            raise StorageError(message) from None
        raise ConfigError(message) from None


def check_tracking(run: RunSettings) -> None:
    """Ask the MLflow store for the run's experiment, which is made where there is none.

    Raises:
        ConfigError: the experiment's name is bad, or it was deleted.
        TrackingError: the store does not answer within seconds, or refuses.
    """
    uri = tracking_uri(run)
    try:
        with quickly():
            if not uri.startswith(_BY_HTTP):
                _connect(uri)
            experiment = experiment_of(open_store(uri), run)
    except MlflowException as error:
        if error.error_code == ErrorCode.Name(INVALID_PARAMETER_VALUE):
            raise ConfigError(f"run.experiment={run.experiment!r}: {_one_line(error)}") from None
        raise _unreachable(uri, error) from None
    except Exception as error:  # of the network, the driver or the database, each with classes of its own
        raise _unreachable(uri, error) from None
    if experiment.lifecycle_stage == LifecycleStage.DELETED:
        raise ConfigError(
            f"run.experiment={run.experiment!r}: was deleted at {uri}; restore it (mlflow experiments restore "
            f"--experiment-id {experiment.experiment_id}), or give another name"
        )


def _unreachable(uri: str, error: Exception) -> TrackingError:
    return TrackingError(
        f"the MLflow store at {uri} does not answer as one: {_one_line(error)}; start it, or set run.tracking_uri"
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _connect(uri: str) -> None:
    """To a database, once: MLflow tries ten times, for minutes, to open one that refuses."""
    engine = sqlalchemy.create_engine(uri)
    try:
        sqlalchemy.inspect(engine).get_table_names()
    finally:
        engine.dispose()


@contextmanager
def quickly() -> Iterator[None]:
    """Let requests to MLflow fail within seconds; it reads its waits from the environment at each of them."""
    before = {name: os.environ.get(name) for name in _QUICK}
    os.environ.update(_QUICK)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
