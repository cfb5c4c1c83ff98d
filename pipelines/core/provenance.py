"""Where a run came from and what it was made of: what MLflow shows of a run beside its numbers.

The commit and the image come by MLflow's own ways: from git where the source is a checkout, and from the variable
MLFLOW_RUN_CONTEXT, a JSON object of tags, which the image sets.
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
"""In the folder of an artifact, finished or not: the MLflow run that makes it"""
RAY_JOB = "ray_job"
_ROOT = Path(__file__).parents[2]


def origin(jobs_before: str = "") -> dict[str, str]:
    """Tags of a run: user, source file, commit and image as far as they are known, `code` (a fingerprint of the
    Python that runs, committed or not), and `ray_job`, the jobs of Ray's job server that have worked on it."""
    sources = {part: content_of(_ROOT / part, suffix=".py") for part in ("asymflow", "pipelines")}
    tags = {"code": ".".join(name[:8] for name in sources.values())}
    if job := submission_id():
        jobs = dict.fromkeys([*filter(None, jobs_before.split(", ")), job])
        tags |= {RAY_JOB: ", ".join(jobs), MLFLOW_SOURCE_TYPE: "JOB"}
    return resolve_tags(tags)


def submission_id() -> str:
    """What `ray job` calls the job that this process is the driver of; empty for others."""
    config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}")
    return config.get("metadata", {}).get("job_submission_id", "")


def read_run(folder: str) -> str:
    """The MLflow run that makes, or made, the artifact in a folder; empty where none is known."""
    state = storage.join(folder, RUN_STATE)
    return json.loads(storage.read_bytes(state)).get("mlflow_run", "") if storage.exists(state) else ""


def write_run(folder: str, run_id: str) -> None:
    storage.write_bytes(storage.join(folder, RUN_STATE), json.dumps({"mlflow_run": run_id}).encode())


def describe(
    folder: str, inputs: Mapping[str, Artifact], sources: Mapping[str, str], page_of: Callable[[str], str]
) -> str:
    """Describe for a run's page what the run makes and from what.

    Args:
        folder: The artifact that the run makes.
        inputs: The artifacts that it reads, by setting.
        sources: URIs of the data from outside that it reads, by setting.
        page_of: Returns the link to the page of an MLflow run, or an empty string if it has no page.

    Returns:
        Markdown in which each input links to the run that made it, so that a score leads back to the shards by clicks.
    """
    made_of = [_link(artifact, page_of) for artifact in inputs.values()] + [f"`{uri}`" for uri in sources.values()]
    return "\n\n".join([*([f"Made from {', '.join(made_of)}"] if made_of else []), f"Artifact `{folder}`"])


def _link(artifact: Artifact, page_of: Callable[[str], str]) -> str:
    label = f"{artifact.step} {artifact.id[:6]}"
    page = page_of(read_run(artifact.uri))
    return f"[{label}]({page})" if page else f"{label} (`{artifact.uri}`)"
