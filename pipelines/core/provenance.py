"""Provenance of an MLflow run: tags for its code, container image and Ray jobs, and a description with its inputs.

MLflow itself adds the commit, if the source is a git checkout, and the tags in the variable MLFLOW_RUN_CONTEXT, a JSON
object that the container image sets.
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from mlflow.tracking.context.registry import resolve_tags
from mlflow.utils.mlflow_tags import MLFLOW_SOURCE_TYPE

from asymflow.content import content_of
from pipelines.core import storage
from pipelines.core.artifacts import Artifact

RUN_STATE = ".run.json"
"""File in the folder of an artifact, finished or not, with the ID of the MLflow run that makes it"""
RAY_JOB = "ray_job"
_ROOT = Path(__file__).parents[2]


def origin(jobs_before: str = "") -> dict[str, str]:
    """Return a run's provenance tags: user, source file, commit and image if known, `code` and `ray_job`.

    `code` is a fingerprint of the Python source, committed or not. `ray_job` lists the jobs of Ray's job server that
    have worked on the run.

    Args:
        jobs_before: Value of `ray_job` so far.
    """
    sources = {part: content_of(_ROOT / part, suffix=".py") for part in ("asymflow", "pipelines")}
    tags = {"code": ".".join(name[:8] for name in sources.values())}
    if job := submission_id():
        jobs = dict.fromkeys([*filter(None, jobs_before.split(", ")), job])
        tags |= {RAY_JOB: ", ".join(jobs), MLFLOW_SOURCE_TYPE: "JOB"}
    return resolve_tags(tags)


def submission_id() -> str:
    """Return the submission ID of the Ray job whose driver this process is, or an empty string."""
    config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    return config.get("metadata", {}).get("job_submission_id", "")


def read_run(folder: str) -> str:
    """Return the ID of the MLflow run that makes, or made, the artifact in a folder; empty if unknown."""
    state = storage.join(folder, RUN_STATE)
    return json.loads(storage.read_bytes(state)).get("mlflow_run", "") if storage.exists(state) else ""


def write_run(folder: str, run_id: str) -> None:
    """Record the ID of the MLflow run that makes the artifact in a folder."""
    storage.write_bytes(storage.join(folder, RUN_STATE), json.dumps({"mlflow_run": run_id}).encode())


def describe(
    folder: str, inputs: Mapping[str, Artifact], sources: Mapping[str, str], page_of: Callable[[str], str]
) -> str:
    """Write the description of a run's page: the run's artifact and its inputs.

    Args:
        folder: The artifact that the run makes.
        inputs: The artifacts that it reads, by setting.
        sources: URIs of the external data that it reads, by setting.
        page_of: Returns the link to the page of an MLflow run, or an empty string if it has no page.

    Returns:
        Markdown in which each input links to the run that made it, so that links lead from a score back to the shards.
    """
    made_of = [_link(artifact, page_of) for artifact in inputs.values()] + [f"`{uri}`" for uri in sources.values()]
    return "\n\n".join([*([f"Made from {', '.join(made_of)}"] if made_of else []), f"Artifact `{folder}`"])


def _link(artifact: Artifact, page_of: Callable[[str], str]) -> str:
    label = f"{artifact.step} {artifact.id[:6]}"
    page = page_of(read_run(artifact.uri))
    return f"[{label}]({page})" if page else f"{label} (`{artifact.uri}`)"
