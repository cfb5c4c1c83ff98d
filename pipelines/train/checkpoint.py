"""Checkpoint format: folders of safetensors, complete once `state.json` is written, which is last.

Checkpoints do not depend on the number of workers or on the ZeRO stage: tensors are whole and have names. `state.json`
has each file's size and SHA-256; a checkpoint that does not match is skipped in favor of the one before it, and never
deleted.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from pipelines.core import storage
from pipelines.core.scratch import scratch_folder
from pipelines.train.config import Checkpoints

LOGGER = logging.getLogger(__name__)
STATE = "state.json"
_CHUNK = 1 << 22

Tensors = Mapping[str, Mapping[str, Tensor]]
"""{file: {name: tensor}}: `trainable`, `average`, and one file per part of the optimizer's state"""


class DamagedCheckpoint(ValueError):
    """A file of a checkpoint is missing or damaged."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: its folder and the content of `state.json`."""

    uri: str
    state: dict[str, Any]

    @property
    def step(self) -> int:
        """Return the step of the checkpoint."""
        return self.state["step"]

    @property
    def names(self) -> list[str]:
        """Return the names of the tensor files, without suffix."""
        return [file.removesuffix(".safetensors") for file in self.state["files"]]

    def read(self, name: str) -> dict[str, Tensor]:
        """Return one file's tensors. Raises DamagedCheckpoint."""
        file = f"{name}.safetensors"

        def load(path: Path) -> dict[str, Tensor]:
            if _describe(path) != self.state["files"][file]:
                raise DamagedCheckpoint(f"{self.uri}/{file} is damaged (SHA-256 or size differs)")
            return load_file(path)

        try:
            return storage.read_file(storage.join(self.uri, file), load)
        except FileNotFoundError:
            raise DamagedCheckpoint(f"{self.uri}/{file} is missing") from None


def folder_of(artifact: str) -> str:
    """Return the folder of an artifact's checkpoints; the artifact need not be complete."""
    return storage.join(artifact, ".train", "checkpoints")


def list_checkpoints(folder: str) -> list[Checkpoint]:
    """Return all complete checkpoints, the oldest first."""
    files = storage.list_files(folder, f"/{STATE}")
    return [Checkpoint(file.removesuffix(f"/{STATE}"), json.loads(storage.read_bytes(file))) for file in files]


def load_newest(folder: str, names: list[str] | None = None) -> tuple[Checkpoint, dict[str, dict[str, Tensor]]] | None:
    """Return the newest undamaged checkpoint and its tensors; None if there is none.

    Args:
        folder: folder of the checkpoints.
        names: files to read; None for all.
    """
    for checkpoint in reversed(list_checkpoints(folder)):
        try:
            return checkpoint, {name: checkpoint.read(name) for name in names or checkpoint.names}
        except DamagedCheckpoint as error:
            LOGGER.warning("%s; using the checkpoint before it", error)
    return None


def write_checkpoint(folder: str, tensors: Tensors, state: dict[str, Any], attempt: str) -> Checkpoint:
    """Write a checkpoint. Attempts write to separate folders.

    Args:
        folder: folder of the checkpoints.
        tensors: tensors by file.
        state: JSON with the `step`.
        attempt: name of the attempt.
    """
    uri = storage.join(folder, f"{state['step']:08}-{attempt}")
    files = {}
    with scratch_folder() as scratch:
        for name, content in tensors.items():
            path = scratch / f"{name}.safetensors"
            save_file(dict(content), path)
            files[path.name] = _describe(path)
            storage.put_file(path, storage.join(uri, path.name))
            path.unlink()
    state = {**state, "attempt": attempt, "files": files}
    storage.write_bytes(storage.join(uri, STATE), json.dumps(state).encode())
    return Checkpoint(uri, state)


def prune(folder: str, settings: Checkpoints) -> list[Checkpoint]:
    """Delete all but the last `keep_last` checkpoints and those at multiples of `keep_every`.

    Incomplete checkpoints of failed writes or lost attempts are deleted too. Only the newest attempt may call this,
    while nothing is being written.

    Returns:
        The checkpoints that are kept.
    """
    finished = list_checkpoints(folder)
    old = [c.uri for c in finished[: -settings.keep_last] if not settings.keep_every or c.step % settings.keep_every]
    begun = {file.rpartition("/")[0] for file in storage.list_files(folder)}
    for uri in (*old, *sorted(begun - {c.uri for c in finished})):
        storage.delete_folder(uri)
    return [c for c in finished if c.uri not in old]


def _describe(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return {"sha256": digest.hexdigest(), "bytes": path.stat().st_size}
