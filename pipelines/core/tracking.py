"""MLflow tracking: one run per step, with its settings, inputs, metrics and images.

Stores are always given by an absolute URI. A Ray worker has another working directory, so that a relative SQLite path
would create a second database there.
"""

import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
from filelock import FileLock
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import Experiment, Metric, Param, RunStatus
from mlflow.entities.dataset_input import DatasetInput
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE
from PIL import Image

from pipelines.core import hub_dataset, storage
from pipelines.core.artifacts import Artifact
from pipelines.core.config import ConfigError, RunSettings
from pipelines.core.credentials import has_secret
from pipelines.core.environment import environment
from pipelines.core.provenance import RAY_JOB, origin, read_run, write_run

LOGGER = logging.getLogger(__name__)
PARENT = "mlflow.parentRunId"
_EXPERIMENT = {"mlflow.experimentKind": "custom_model_development"}  # MLflow's pages for training, not for chats
_PARAM_LENGTH = 5000
_RAY_PACKAGES = "/runtime_resources/working_dir_files/"  # Ray unpacks the job's working directory there
_METRICS_PER_REQUEST = 1000
_PARENTS: dict[str, str | None] = {}
"""{open run of this process: run that it is nested in}"""


def tracking_uri(run: RunSettings) -> str:
    """Return the absolute URI of the MLflow store, creating the folder of a SQLite file.

    Raises:
        ConfigError: No store is configured, or its URI holds a secret or is of an unknown kind.
    """
    uri = run.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    if has_secret(uri):
        raise ConfigError(
            "MLFLOW_TRACKING_URI: holds a password or a token, which would be logged; for a server, set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN; for a database, set its "
            "own variables"
        )
    if not uri:
        if not storage.is_local(run.storage):
            raise ConfigError(
                "run.tracking_uri: set the MLflow server to log to (or MLFLOW_TRACKING_URI); a database file "
                f"cannot be stored in {run.storage}"
            )
        uri = f"sqlite:///{storage.join(storage.absolute(run.storage), 'mlflow.db')}"
    if uri.startswith("sqlite:///"):
        path = Path(uri.removeprefix("sqlite:///")).expanduser().absolute()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            key = "run.tracking_uri" if run.tracking_uri else "run.storage"
            raise ConfigError(f"{key}: cannot create the folder {path.parent}: {error.strerror}") from None
        return f"sqlite:///{path}"
    if not uri.startswith(("http://", "https://", "postgresql", "mysql", "databricks")):
        raise ConfigError(f"run.tracking_uri={uri!r}: must be sqlite:///PATH, a database, or http(s)://SERVER")
    return uri


def check_run(run: RunSettings) -> None:
    """Check the URIs of a run's storage and MLflow store, without access to them. Raises ConfigError."""
    tracking_uri(run)
    if storage.is_local(run.storage) and _RAY_PACKAGES in storage.absolute(run.storage):
        raise ConfigError(
            f"run.storage={run.storage!r}: is in the job's working directory, which Ray deletes; set an absolute path "
            "that every node can access, or s3://bucket/prefix"
        )


def describe_ui(run: RunSettings) -> str:
    """Return the URL of MLflow's server, or the command that starts its UI on a database."""
    uri = tracking_uri(run)
    return uri if uri.startswith("http") else f".venv/bin/mlflow ui --backend-store-uri {uri}"


class MetricsRow(NamedTuple):
    """The metrics of one optimizer step."""

    step: int
    milliseconds: int
    """Unix time of the measurement"""
    values: Mapping[str, float]


@dataclass(frozen=True)
class Tracker:
    """Handle of one MLflow run. It is two strings, so any worker can log to the run."""

    uri: str
    run_id: str

    @property
    def client(self) -> MlflowClient:
        """Return a client of the run's store."""
        return MlflowClient(self.uri)

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0, timestamp: int | None = None) -> None:
        """Log metrics of one step.

        Args:
            metrics: Values by name.
            step: The optimizer step; 0 for a run without steps.
            timestamp: Unix time in milliseconds; by default now.
        """
        when = mlflow.utils.time.get_current_time_millis() if timestamp is None else timestamp
        self.client.log_batch(self.run_id, [Metric(k, float(v), when, step) for k, v in metrics.items()])

    def log_rows(self, rows: Iterable[MetricsRow]) -> None:
        """Log the metrics of several steps in as few requests as possible, without splitting a step.

        Logging a row twice has no effect: MLflow keeps one point.
        """
        request: list[Metric] = []
        for row in rows:
            metrics = [Metric(k, float(v), row.milliseconds, row.step) for k, v in row.values.items()]
            if len(request) + len(metrics) > _METRICS_PER_REQUEST:
                self.client.log_batch(self.run_id, request)
                request = []
            request += metrics
        if request:
            self.client.log_batch(self.run_id, request)

    def last_step(self, metric: str) -> int:
        """Return the last step of a metric, or -1 if it was never logged.

        It is read from the run, because a metric's history may have hundreds of thousands of points.
        """
        latest = self.client.get_run(self.run_id).data.to_proto().metrics
        return next((m.step for m in latest if m.key == metric), -1)

    def log_text(self, text: str, name: str) -> None:
        """Log text as the artifact file `name`."""
        self.client.log_text(self.run_id, text, name)

    def log_params(self, settings: Mapping[str, Any]) -> None:
        """Log flattened settings as parameters, except empty ones and `run`. A resumed run keeps those that it has."""
        known = self.client.get_run(self.run_id).data.params
        shown = {k: v for k, v in flatten(settings).items() if not (k.startswith("run.") or v in (None, "", [], {}))}
        params = [Param(k, str(v)[:_PARAM_LENGTH]) for k, v in shown.items() if k not in known]
        self.client.log_batch(self.run_id, params=params)

    def log_input(self, artifact: Artifact) -> None:
        """Log an artifact as a dataset that the run uses."""
        self.log_dataset(artifact.step, artifact.uri, artifact.id)

    def log_dataset(self, name: str, uri: str, digest: str) -> None:
        """Log a dataset that the run uses."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # MLflow warns that it registers its local source twice
            # MLflow does not know hf://
            address = hub_dataset.page_of(uri) if hub_dataset.is_on_hub(uri) else storage.absolute(uri)
            source = resolve_dataset_source(address)
        # MLflow itself instantiates this class, although `profile` is abstract
        dataset = MetaDataset(source=source, name=name, digest=digest)  # type: ignore[abstract]
        self.client.log_inputs(self.run_id, [DatasetInput(dataset._to_mlflow_entity())])

    def log_image(self, name: str, image: Image.Image) -> None:
        """Log an image as `pictures/NAME.png`."""
        self.client.log_image(self.run_id, image.convert("RGB"), artifact_file=f"pictures/{name}.png")

    def log_image_at_step(self, name: str, image: Image.Image, step: int) -> None:
        """Log an image of an optimizer step, which MLflow's image grid aligns with that step's metrics."""
        self.client.log_image(self.run_id, image.convert("RGB"), key=name, step=step, synchronous=True)

    def log_figure(self, name: str, figure: Any) -> None:
        """Log a matplotlib figure as `pictures/NAME.png`."""
        self.client.log_figure(self.run_id, figure, f"pictures/{name}.png")

    def log_table(self, name: str, columns: Mapping[str, list[Any]]) -> None:
        """Log a table, given by columns, as `NAME.json`."""
        self.client.log_table(self.run_id, dict(columns), f"{name}.json")

    def log_file(self, uri: str) -> None:
        """Log a stored file under its own name."""
        storage.read_file(uri, lambda local: self.client.log_artifact(self.run_id, str(local)))

    def set_tag(self, key: str, value: str) -> None:
        """Set a tag of the run."""
        self.client.set_tag(self.run_id, key, value)

    def set_description(self, markdown: str) -> None:
        """Set the description, which is at the top of the run's page."""
        self.set_tag(MLFLOW_RUN_NOTE, markdown)

    def page_of(self, run_id: str) -> str:
        """Return the link to a run's page relative to MLflow's UI, or an empty string if the store has no such run."""
        if not run_id or not _exists(self.client, run_id):
            return ""
        return f"#/experiments/{self.client.get_run(run_id).info.experiment_id}/runs/{run_id}"


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to {dotted key: value}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


@contextmanager
def open_run(run: RunSettings, name: str, run_id: str | None = None, parent: str | None = None) -> Iterator[Tracker]:
    """Create an MLflow run, or resume one, and mark it FINISHED at the end, or FAILED on an exception.

    On an exception, open runs of this process that are nested in it are marked too.

    Args:
        run: Settings of the MLflow store and the experiment.
        name: Name of a new run.
        run_id: The run to resume; a new one is created if the store does not have it.
        parent: ID of the run that a new run is nested in.
    """
    uri = tracking_uri(run)
    client = open_store(uri)
    if not run_id or not _exists(client, run_id):
        experiment_id = experiment_of(client, run).experiment_id
        tags = origin() | ({PARENT: parent} if parent else {})
        run_id = client.create_run(experiment_id, run_name=name, tags=tags).info.run_id
    else:
        client.update_run(run_id, status=RunStatus.to_string(RunStatus.RUNNING))
        for key, value in origin(client.get_run(run_id).data.tags.get(RAY_JOB, "")).items():
            client.set_tag(run_id, key, value)
    _PARENTS[run_id] = parent
    try:
        yield Tracker(uri, run_id)
    except BaseException:
        for child in [child for child, above in list(_PARENTS.items()) if above == run_id]:
            _mark_failed(client, child)  # runs in threads, which end with the process
        _mark_failed(client, run_id)
        raise
    finally:
        del _PARENTS[run_id]
    client.set_terminated(run_id, "FINISHED")


def _mark_failed(client: MlflowClient, run_id: str) -> None:
    """Mark the run as failed. An unreachable server must neither delay the end nor hide the original error."""
    try:
        with environment({"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}):
            client.set_terminated(run_id, "FAILED")
    except (MlflowException, OSError) as error:
        reason = " ".join(str(error).split())
        LOGGER.warning("MLflow does not respond and still shows run %s as running: %s", run_id, reason)


@contextmanager
def open_artifact_run(
    folder: str, step: str, run: RunSettings, name: str, parent: str | None = None
) -> Iterator[Tracker]:
    """Open the run that makes the artifact in a folder, and record its ID there, so that the next job resumes it.

    Args:
        folder: Folder of the artifact.
        step: Name of the step, set as a tag.
        run: See `open_run`.
        name: See `open_run`.
        parent: See `open_run`.
    """
    with open_run(run, name, read_run(folder), parent) as tracker:
        write_run(folder, tracker.run_id)
        tracker.set_tag("step", step)
        yield tracker


def open_store(uri: str) -> MlflowClient:
    """Return a client of an MLflow store.

    A SQLite file is opened under a lock: MLflow creates the tables of a new file on opening, and fails if two jobs do
    so at once.
    """
    if not uri.startswith("sqlite:///"):
        return MlflowClient(uri)
    database = Path(uri.removeprefix("sqlite:///"))
    with FileLock(database.with_name(f".{database.name}.lock")):
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    return client


def _exists(client: MlflowClient, run_id: str) -> bool:
    try:
        return client.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException:
        return False


def experiment_of(client: MlflowClient, run: RunSettings) -> Experiment:
    """Return the run's experiment, creating it if it does not exist; a deleted experiment is returned unchanged.

    For a SQLite store, MLflow's files are stored beside the artifacts; a server chooses their location itself.
    """
    if experiment := client.get_experiment_by_name(run.experiment):
        return experiment
    local = client.tracking_uri.startswith("sqlite:///")
    location = storage.join(storage.absolute(run.storage), "mlflow") if local else None
    try:
        return client.get_experiment(
            client.create_experiment(run.experiment, artifact_location=location, tags=_EXPERIMENT)
        )
    except MlflowException:  # another job created it in the meantime
        experiment = client.get_experiment_by_name(run.experiment)
        if experiment is None:
            raise
        return experiment
