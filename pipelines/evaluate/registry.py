"""MLflow's model registry: the adapter that a name's alias points to, and its scores as tags."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

import mlflow.artifacts
from mlflow.entities import LoggedModelInput
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from asymflow.adapters import CONFIG, WEIGHTS
from pipelines.core import storage
from pipelines.core.artifacts import Artifact
from pipelines.core.config import ConfigError, RunSettings
from pipelines.core.preflight import short_timeouts
from pipelines.core.provenance import read_run
from pipelines.core.tracking import Tracker, tracking_uri

FOLDER = "registered"


def pin_version(name: str, run: RunSettings) -> str:
    """Return NAME/VERSION of NAME@ALIAS, as an alias may move. Raises ConfigError if there is none."""
    version = _find(name, run)
    return f"{version.name}/{version.version}"


def fetch(name: str, run: RunSettings) -> tuple[str, dict[str, str]]:
    """Return a registered adapter, copied into the storage where every node can read it, and its lineage.

    Args:
        name: NAME/VERSION or NAME@ALIAS.
        run: settings with storage and tracking URI.

    Raises:
        ConfigError: there is no such version, or it holds no adapter.
    """
    uri, version = tracking_uri(run), _find(name, run)
    folder = storage.join(storage.absolute(run.storage), FOLDER, version.name, str(version.version))
    if not storage.exists(storage.join(folder, CONFIG)):
        source = MlflowClient(uri, uri).get_model_version_download_uri(version.name, version.version)
        with tempfile.TemporaryDirectory() as scratch:
            local = Path(mlflow.artifacts.download_artifacts(source, dst_path=scratch, tracking_uri=uri))
            found = [path.parent for path in local.rglob(WEIGHTS)]
            if len(found) != 1:
                raise ConfigError(f"registered={name!r}: version {version.version} holds {len(found)} adapters")
            storage.put_folder(found[0], folder, last=CONFIG)
    return folder, _lineage(version)


def lineage_of(finetuned: Artifact, run: RunSettings) -> dict[str, str]:
    """Return the lineage of a finetune's adapter: of its registered version, or else of its run alone."""
    uri, made_by = tracking_uri(run), read_run(finetuned.uri)
    versions = MlflowClient(uri, uri).search_model_versions(f"run_id = '{made_by}'") if made_by else []
    own = [version for version in versions if version.tags.get("artifact") == finetuned.uri]
    newest = max(own, key=lambda version: int(version.version), default=None)
    return _lineage(newest) if newest else {"adapter_run": made_by, "adapter_artifact": finetuned.uri}


def _lineage(version: ModelVersion) -> dict[str, str]:
    lineage = {"registered": f"{version.name}/{version.version}", "adapter_run": version.run_id or ""}
    tags = {f"adapter_{key}": version.tags[key] for key in ("artifact", "step", "kind") if key in version.tags}
    return lineage | tags | {"model_id": version.tags.get("model_id", "")}


def _find(name: str, run: RunSettings) -> ModelVersion:
    uri = tracking_uri(run)
    client, alias = MlflowClient(uri, uri), "@" in name
    try:
        with short_timeouts():
            if alias:
                return client.get_model_version_by_alias(*name.split("@", 1))
            return client.get_model_version(*name.rsplit("/", 1))
    except (MlflowException, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"registered={name!r}: {reason}; give NAME@ALIAS (a finetune's is EXPERIMENT@newest) or NAME/VERSION"
        ) from None


def link(tracker: Tracker, lineage: Mapping[str, str], suite: str, metrics: Mapping[str, float]) -> None:
    """Tag the evaluation's run with the lineage, and the registered version with its scores."""
    client = tracker.client
    for key, value in lineage.items():
        if value:
            tracker.set_tag(key, value)
    if lineage.get("model_id"):
        client.log_inputs(tracker.run_id, models=[LoggedModelInput(lineage["model_id"])])
    if lineage.get("registered"):
        registry = MlflowClient(tracker.uri, tracker.uri)
        name, version = lineage["registered"].rsplit("/", 1)
        own = {metric: number for metric, number in metrics.items() if metric.startswith("trained/")}
        for metric, number in own.items():  # scores of the other models are not the version's
            registry.set_model_version_tag(name, version, f"{suite}/{metric}", f"{number:.6g}")
