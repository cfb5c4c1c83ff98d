"""MLflow: one run a step, with its settings, the lineage of its inputs, its numbers and pictures.

Stores are always named by an absolute address: a Ray worker has another working directory, and a relative SQLite
path would make it log to a stray database.
"""

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import Metric, Param, RunStatus
from mlflow.entities.dataset_input import DatasetInput
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from PIL import Image

from pipelines import storage
from pipelines.artifacts import Artifact
from pipelines.config import ConfigError, RunSettings

PARENT = "mlflow.parentRunId"
_PARAM_LENGTH = 5000
_METRICS_A_REQUEST = 1000


def tracking_uri(run: RunSettings) -> str:
    """The absolute address of the MLflow store of these settings. Raises ConfigError."""
    uri = run.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri:
        if not storage.is_local(run.storage):
            raise ConfigError(
                "run.tracking_uri: say which MLflow server to log to (or set MLFLOW_TRACKING_URI); a database file "
                f"cannot lie in {run.storage}"
            )
        uri = f"sqlite:///{storage.join(storage.absolute(run.storage), 'mlflow.db')}"
    if uri.startswith("sqlite:///"):
        path = Path(uri.removeprefix("sqlite:///")).absolute()
        path.parent.mkdir(parents=True, exist_ok=True)
        return f"sqlite:///{path}"
    if not uri.startswith(("http://", "https://", "postgresql", "mysql", "databricks")):
        raise ConfigError(f"run.tracking_uri={uri!r}: must be sqlite:///PATH, a database, or http(s)://SERVER")
    return uri


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

    def log_history(self, history: Mapping[int, Mapping[str, float]]) -> None:
        """Metrics of several steps, {step: {name: value}}, in as few requests as may be."""
        when = mlflow.utils.time.get_current_time_millis()
        metrics = [Metric(k, float(v), when, step) for step, values in history.items() for k, v in values.items()]
        for i in range(0, len(metrics), _METRICS_A_REQUEST):
            self.client.log_batch(self.run_id, metrics[i : i + _METRICS_A_REQUEST])

    def last_step(self, metric: str) -> int:
        """The highest step logged for a metric, -1 where there is none."""
        return max((m.step for m in self.client.get_metric_history(self.run_id, metric)), default=-1)

    def log_params(self, settings: Mapping[str, Any]) -> None:
        """Flattened settings; what the run already has (it is being gone on with) is left."""
        known = self.client.get_run(self.run_id).data.params
        params = [Param(k, str(v)[:_PARAM_LENGTH]) for k, v in flatten(settings).items() if k not in known]
        self.client.log_batch(self.run_id, params=params)

    def log_input(self, artifact: Artifact) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # MLflow registers its local source twice, and says so
            source = resolve_dataset_source(artifact.uri)
        # MLflow makes such objects itself, though it leaves `profile` abstract.
        dataset = MetaDataset(source=source, name=artifact.step, digest=artifact.id)  # type: ignore[abstract]
        self.client.log_inputs(self.run_id, [DatasetInput(dataset._to_mlflow_entity())])

    def log_picture(self, name: str, image: Image.Image) -> None:
        self.client.log_image(self.run_id, image.convert("RGB"), artifact_file=f"pictures/{name}.png")

    def log_picture_at(self, name: str, image: Image.Image, step: int) -> None:
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
    client = MlflowClient(uri)
    if run_id is None or not _exists(client, run_id):
        experiment = client.get_experiment_by_name(run.experiment)
        experiment_id = experiment.experiment_id if experiment else _create_experiment(client, run)
        tags = {PARENT: parent} if parent else {}
        run_id = client.create_run(experiment_id, run_name=name, tags=tags).info.run_id
    else:
        client.update_run(run_id, status=RunStatus.to_string(RunStatus.RUNNING))
    tracker = Tracker(uri, run_id)
    try:
        yield tracker
    except BaseException:
        client.set_terminated(run_id, "FAILED")
        raise
    client.set_terminated(run_id, "FINISHED")


def _exists(client: MlflowClient, run_id: str) -> bool:
    try:
        return client.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException:
        return False


def _create_experiment(client: MlflowClient, run: RunSettings) -> str:
    """Pictures of a database store lie beside the artifacts; a server decides for itself."""
    local = client.tracking_uri.startswith("sqlite:///")
    location = storage.join(storage.absolute(run.storage), "mlflow") if local else None
    try:
        return client.create_experiment(run.experiment, artifact_location=location)
    except MlflowException:  # another job made it in the meantime
        experiment = client.get_experiment_by_name(run.experiment)
        if experiment is None:
            raise
        return experiment.experiment_id
