"""Check that a job's storage and MLflow store respond, within seconds and before Ray starts.

A running job retries until an outage is over. A new job fails fast instead, since the cause may be a wrong setting.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy
from mlflow.entities import LifecycleStage
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, ErrorCode

from pipelines.core import s3, storage
from pipelines.core.config import ConfigError, RunSettings
from pipelines.core.environment import environment
from pipelines.core.storage import StorageError
from pipelines.core.tracking import check_run, experiment_of, open_store, tracking_uri

_TRANSIENT = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE)  # the setting may still be right
_SECONDS = 5
_QUICK = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": str(_SECONDS),
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "PGCONNECT_TIMEOUT": str(_SECONDS),
}
_HTTP_PREFIXES = ("http://", "https://", "databricks")


class TrackingError(MlflowException):
    """Raised when the MLflow store does not respond or refuses; the message has URI and cause. Exit status 1."""


def check_destinations(run: RunSettings) -> None:
    """Check what is needed even to find that a job's artifact is up to date. Raises ConfigError or StorageError."""
    check_run(run)
    if not storage.is_local(run.storage):
        s3.check_reachable(run.storage)


def check_can_build(run: RunSettings) -> None:
    """Check what a job needs to build its artifact. Raises ConfigError, StorageError or TrackingError."""
    check_destinations(run)
    check_storage(run)
    check_tracking(run)


def check_storage(run: RunSettings) -> None:
    """Check that a local storage is writable.

    Raises:
        ConfigError: It cannot be written to.
        StorageError: It is full, or has an I/O error.
    """
    if not storage.is_local(run.storage):
        return  # on S3 the artifact's lease, which is written first, is the check
    try:
        storage.check_writable(run.storage)
    except StorageError as error:
        message = f"run.storage={run.storage!r}: {error.strerror}; give a folder that this job may write to"
        if error.errno in _TRANSIENT:
            raise StorageError(message) from None
        raise ConfigError(message) from None


def check_tracking(run: RunSettings) -> None:
    """Get the run's experiment from the MLflow store, creating it if it does not exist.

    Raises:
        ConfigError: The experiment's name is invalid, or the experiment was deleted.
        TrackingError: The store does not respond within seconds, or refuses.
    """
    uri = tracking_uri(run)
    try:
        with short_timeouts():
            if not uri.startswith(_HTTP_PREFIXES):
                _connect(uri)
            experiment = experiment_of(open_store(uri), run)
    except MlflowException as error:
        if error.error_code == ErrorCode.Name(INVALID_PARAMETER_VALUE):
            raise ConfigError(f"run.experiment={run.experiment!r}: {_one_line(error)}") from None
        raise _unreachable(uri, error) from None
    except Exception as error:  # network, driver and database each raise their own classes
        raise _unreachable(uri, error) from None
    if experiment.lifecycle_stage == LifecycleStage.DELETED:
        raise ConfigError(
            f"run.experiment={run.experiment!r}: was deleted at {uri}; restore it (mlflow experiments restore "
            f"--experiment-id {experiment.experiment_id}), or set another name"
        )


def _unreachable(uri: str, error: Exception) -> TrackingError:
    return TrackingError(
        f"the MLflow store at {uri} does not respond as expected: {_one_line(error)}; start it, or set run.tracking_uri"
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _connect(uri: str) -> None:
    """Connect to a database once, because MLflow itself retries ten times, for minutes."""
    engine = sqlalchemy.create_engine(uri)
    try:
        sqlalchemy.inspect(engine).get_table_names()
    finally:
        engine.dispose()


@contextmanager
def short_timeouts() -> Iterator[None]:
    """Make requests to MLflow fail within seconds; MLflow reads its timeouts from the environment per request."""
    with environment(_QUICK):
        yield
