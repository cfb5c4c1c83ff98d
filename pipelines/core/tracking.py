"""MLflow: one run a step, with its settings, the lineage of its inputs, its numbers and pictures.

Stores are always named by an absolute address: a Ray worker has another working directory, and a relative SQLite
path would make it log to a stray database.
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

from pipelines.core import storage
from pipelines.core.artifacts import Artifact
from pipelines.core.config import ConfigError, RunSettings
from pipelines.core.credentials import has_secret
from pipelines.core.provenance import RAY_JOB, origin, read_run, write_run

LOGGER = logging.getLogger(__name__)
PARENT = "mlflow.parentRunId"
_EXPERIMENT = {"mlflow.experimentKind": "custom_model_development"}  # MLflow's pages for training, not for chats
_PARAM_LENGTH = 5000
_RAY_PACKAGES = "/runtime_resources/working_dir_files/"  # what `ray job submit --working-dir` sent is unpacked there
_METRICS_A_REQUEST = 1000


def tracking_uri(run: RunSettings) -> str:
    """The absolute address of the MLflow store of these settings. Raises ConfigError."""
    uri = run.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    if has_secret(uri):
        raise ConfigError(
            "MLFLOW_TRACKING_URI: holds a password or a token, which would be shown; put a server's into "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, a database's into its "
            "own variables"
        )
    if not uri:
        if not storage.is_local(run.storage):
            raise ConfigError(
                "run.tracking_uri: say which MLflow server to log to (or set MLFLOW_TRACKING_URI); a database file "
                f"cannot lie in {run.storage}"
            )
        uri = f"sqlite:///{storage.join(storage.absolute(run.storage), 'mlflow.db')}"
    if uri.startswith("sqlite:///"):
        path = Path(uri.removeprefix("sqlite:///")).expanduser().absolute()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            key = "run.tracking_uri" if run.tracking_uri else "run.storage"
            raise ConfigError(f"{key}: cannot make the folder {path.parent}: {error.strerror}") from None
        return f"sqlite:///{path}"
    if not uri.startswith(("http://", "https://", "postgresql", "mysql", "databricks")):
        raise ConfigError(f"run.tracking_uri={uri!r}: must be sqlite:///PATH, a database, or http(s)://SERVER")
    return uri


def check_run(run: RunSettings) -> None:
    """What can be said of a run's places before anything starts. Raises ConfigError."""
    tracking_uri(run)
    if storage.is_local(run.storage) and _RAY_PACKAGES in storage.absolute(run.storage):
        raise ConfigError(
            f"run.storage={run.storage!r}: is a folder of the job's working directory, which Ray deletes; give an "
            "absolute path that every node sees, or s3://bucket/prefix"
        )


def how_to_look(run: RunSettings) -> str:
    """The server's address, or the command that shows a database."""
    uri = tracking_uri(run)
    return uri if uri.startswith("http") else f".venv/bin/mlflow ui --backend-store-uri {uri}"


class MetricsRow(NamedTuple):
    """The metrics of one optimizer step, and when they were taken (Unix time)."""

    step: int
    milliseconds: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class Tracker:
    """One MLflow run, to be written to from the driver or, being two strings, from any worker."""

    uri: str
    run_id: str

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.uri)

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0, timestamp: int | None = None) -> None:
        when = mlflow.utils.time.get_current_time_millis() if timestamp is None else timestamp
        self.client.log_batch(self.run_id, [Metric(k, float(v), when, step) for k, v in metrics.items()])

    def log_rows(self, rows: Iterable[MetricsRow]) -> None:
        """Log the metrics of several steps, in as few requests as may be, of whole steps each. What is logged twice is
        one point."""
        request: list[Metric] = []
        for row in rows:
            metrics = [Metric(k, float(v), row.milliseconds, row.step) for k, v in row.values.items()]
            if len(request) + len(metrics) > _METRICS_A_REQUEST:
                self.client.log_batch(self.run_id, request)
                request = []
            request += metrics
        if request:
            self.client.log_batch(self.run_id, request)

    def last_step(self, metric: str) -> int:
        """The highest step logged for a metric, -1 where there is none: from the run itself, since a metric's history
        may be hundreds of thousands of points."""
        latest = self.client.get_run(self.run_id).data.to_proto().metrics
        return next((m.step for m in latest if m.key == metric), -1)

    def log_text(self, text: str, name: str) -> None:
        self.client.log_text(self.run_id, text, name)

    def log_params(self, settings: Mapping[str, Any]) -> None:
        """Flattened settings, but for those that say nothing (empty) and where the run happens; what the run already
        has (it is being gone on with) is left."""
        known = self.client.get_run(self.run_id).data.params
        said = {k: v for k, v in flatten(settings).items() if not (k.startswith("run.") or v in (None, "", [], {}))}
        params = [Param(k, str(v)[:_PARAM_LENGTH]) for k, v in said.items() if k not in known]
        self.client.log_batch(self.run_id, params=params)

    def log_input(self, artifact: Artifact) -> None:
        self.log_dataset(artifact.step, artifact.uri, artifact.id)

    def log_dataset(self, name: str, uri: str, digest: str) -> None:
        """What the run is made from."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # MLflow registers its local source twice, and says so
            source = resolve_dataset_source(storage.absolute(uri))
        # MLflow makes such objects itself, though it leaves `profile` abstract.
        dataset = MetaDataset(source=source, name=name, digest=digest)  # type: ignore[abstract]
        self.client.log_inputs(self.run_id, [DatasetInput(dataset._to_mlflow_entity())])

    def log_picture(self, name: str, image: Image.Image) -> None:
        self.client.log_image(self.run_id, image.convert("RGB"), artifact_file=f"pictures/{name}.png")

    def log_image_at(self, name: str, image: Image.Image, step: int) -> None:
        """A picture of a step, aligned with the metrics of that step in MLflow's grid."""
        self.client.log_image(self.run_id, image.convert("RGB"), key=name, step=step, synchronous=True)

    def log_figure(self, name: str, figure: Any) -> None:
        self.client.log_figure(self.run_id, figure, f"pictures/{name}.png")

    def log_table(self, name: str, columns: Mapping[str, list[Any]]) -> None:
        self.client.log_table(self.run_id, dict(columns), f"{name}.json")

    def log_file(self, uri: str) -> None:
        """A stored file, under its own name."""
        storage.read_file(uri, lambda local: self.client.log_artifact(self.run_id, str(local)))

    def set_tag(self, key: str, value: str) -> None:
        self.client.set_tag(self.run_id, key, value)

    def set_description(self, markdown: str) -> None:
        """Stands above everything else on the run's page."""
        self.set_tag(MLFLOW_RUN_NOTE, markdown)

    def page_of(self, run_id: str) -> str:
        """Where MLflow's pages show a run of this store, as a link from another of them; empty where it has none."""
        if not run_id or not _exists(self.client, run_id):
            return ""
        return f"#/experiments/{self.client.get_run(run_id).info.experiment_id}/runs/{run_id}"


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


@contextmanager
def open_run(run: RunSettings, name: str, run_id: str | None = None, parent: str | None = None) -> Iterator[Tracker]:
    """A new run, or the one with `run_id` gone on with; ends FINISHED, or FAILED with an exception."""
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
    tracker = Tracker(uri, run_id)
    try:
        yield tracker
    except BaseException:
        _note_failure(client, run_id)
        raise
    client.set_terminated(run_id, "FINISHED")


def _note_failure(client: MlflowClient, run_id: str) -> None:
    """Mark the run as failed. A server that is away must neither hold up the end nor hide its reason."""
    impatient = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    before = {name: os.environ.get(name) for name in impatient}
    os.environ.update(impatient)
    try:
        client.set_terminated(run_id, "FAILED")
    except (MlflowException, OSError) as error:
        reason = " ".join(str(error).split())
        LOGGER.warning("MLflow does not answer, and still shows run %s as running: %s", run_id, reason)
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def open_run_of(folder: str, step: str, run: RunSettings, name: str, parent: str | None = None) -> Iterator[Tracker]:
    """The run that makes what lies in a folder: noted there, so that the next try goes on with it."""
    with open_run(run, name, read_run(folder), parent) as tracker:
        write_run(folder, tracker.run_id)
        tracker.set_tag("step", step)
        yield tracker


def open_store(uri: str) -> MlflowClient:
    """One job after another: MLflow makes the tables of a new SQLite file as it is opened, and two that do it at once
    break each other."""
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
    """The run's experiment, made where there is none; a deleted one is returned as it is.

    Images of a database store lie beside the artifacts; a server decides for itself.
    """
    if experiment := client.get_experiment_by_name(run.experiment):
        return experiment
    local = client.tracking_uri.startswith("sqlite:///")
    location = storage.join(storage.absolute(run.storage), "mlflow") if local else None
    try:
        return client.get_experiment(
            client.create_experiment(run.experiment, artifact_location=location, tags=_EXPERIMENT)
        )
    except MlflowException:  # another job made it in the meantime
        experiment = client.get_experiment_by_name(run.experiment)
        if experiment is None:
            raise
        return experiment
