"""Artifacts: folders STEP/ID, each complete once its manifest is written, which happens last.

The ID is a hash of the step's settings and of its inputs' IDs, so an unchanged step finds its artifact again. Sections
that do not affect the result (where the step runs, on which resources, how it is monitored) are not hashed.
"""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel

from pipelines.core import storage
from pipelines.core.config import is_unchanged_addition
from pipelines.core.errors import MissingArtifact as MissingArtifact

MANIFEST = "manifest.json"
UNHASHED = ("run", "resources", "checkpoints", "validation", "watch", "export", "floors", "ceilings")
VERSIONED = ("asymflow", "torch", "ray", "deepspeed", "diffusers", "transformers", "peft", "mlflow")
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Artifact:
    """A finished artifact: its folder and its manifest."""

    uri: str
    manifest: dict[str, Any]

    @property
    def id(self) -> str:
        """Return the artifact's ID, 16 hexadecimal digits."""
        return self.manifest["id"]

    @property
    def step(self) -> str:
        """Return the name of the step that made the artifact."""
        return self.manifest["step"]

    def file(self, *parts: str) -> str:
        """Return the URI of a file below the artifact's folder."""
        return storage.join(self.uri, *parts)

    def files(self, folder: str, suffix: str) -> list[str]:
        """Return the sorted URIs of a folder's files that the manifest lists; other files are ignored."""
        names = [f for f in self.manifest["files"] if f.startswith(f"{folder}/") and f.endswith(suffix)]
        return [self.file(name) for name in sorted(names)]


def hashed_settings(config: BaseModel) -> dict[str, Any]:
    """Return the settings that determine a step's result, as JSON values."""
    return _without_resources({k: v for k, v in _without_additions(config).items() if k not in UNHASHED})


def _without_additions(config: BaseModel) -> dict[str, Any]:
    """Drop settings that were added later and have their default; see `pipelines.core.config.added`."""
    tree = config.model_dump(mode="json")
    for name in type(config).model_fields:
        if is_unchanged_addition(config, name):
            del tree[name]
        elif isinstance(section := getattr(config, name), BaseModel):
            tree[name] = _without_additions(section)
    return tree


def _without_resources(tree: Any) -> Any:
    """Drop `resources` at every level: parts of a step can have their own."""
    if not isinstance(tree, dict):
        return tree
    return {k: _without_resources(v) for k, v in tree.items() if k != "resources"}


def artifact_id(step: str, settings: dict[str, Any], inputs: dict[str, str]) -> str:
    """Hash a step's name, its settings and the IDs of its inputs to 16 hexadecimal digits."""
    content = json.dumps([step, settings, inputs], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def load_artifact(uri: str, step: str | None = None) -> Artifact:
    """Load the manifest of the finished artifact at a URI.

    Args:
        uri: Folder of the artifact.
        step: The step that must have made it; any if None.

    Raises:
        MissingArtifact: No finished artifact exists there, or another step made it.
    """
    uri = storage.absolute(uri)
    if not storage.exists(storage.join(uri, MANIFEST)):
        remedy = f"run `python jobs/{step}.py CONFIG.yaml`" if step else "run the step that makes it"
        raise MissingArtifact(f"no finished {step or ''} artifact at {uri} (no {MANIFEST}): {remedy}")
    manifest = json.loads(storage.read_bytes(storage.join(uri, MANIFEST)))
    if step and manifest["step"] != step:
        raise MissingArtifact(f"{uri} is an artifact of {manifest['step']}, not of {step}")
    return Artifact(uri, manifest)


def write_manifest(
    uri: str, step: str, identity: str, config: BaseModel, inputs: dict[str, str], metrics: dict[str, Any]
) -> Artifact:
    """Write the manifest of all files in the folder, which completes the artifact."""
    files = storage.list_files(uri)
    with ThreadPoolExecutor() as pool:
        described = list(pool.map(_describe, files))
    manifest = {
        "step": step,
        "id": identity,
        "config": config.model_dump(mode="json"),
        "inputs": inputs,
        "metrics": metrics,
        "files": {file[len(uri) + 1 :]: entry for file, entry in zip(files, described, strict=True)},
        "versions": {name: version(name) for name in VERSIONED},
    }
    storage.write_bytes(storage.join(uri, MANIFEST), json.dumps(manifest, indent=1).encode())
    return Artifact(uri, manifest)


def _describe(uri: str) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    with storage.open_file(uri) as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return {"sha256": digest.hexdigest(), "bytes": size}
