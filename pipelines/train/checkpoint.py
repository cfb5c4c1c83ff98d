"""Checkpoints in the storage: folders of safetensors whose `state.json`, written last, makes them one.

Nothing here depends on the number of workers or on a ZeRO stage: tensors are whole and have names. `state.json` has
each file's size and SHA-256; a checkpoint that does not match is passed over for the one before it, and never deleted.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from pipelines.core import storage
from pipelines.train.config import Checkpoints

LOGGER = logging.getLogger(__name__)
STATE = "state.json"
_CHUNK = 1 << 22

Tensors = Mapping[str, Mapping[str, Tensor]]
"""{file: {name: tensor}}: `trainable`, `average`, and one file for each part of the optimizer's state"""


class DamagedCheckpoint(ValueError):
    """A file of a checkpoint is missing or has other bytes than were written."""


@dataclass(frozen=True)
class Checkpoint:
    """A finished checkpoint: its folder and what `state.json` says, the `step` among it."""

    uri: str
    state: dict[str, Any]

    @property
    def step(self) -> int:
        return self.state["step"]

    @property
    def names(self) -> list[str]:
        """Files of tensors, without their ending."""
        return [file.removesuffix(".safetensors") for file in self.state["files"]]

    def read(self, name: str) -> dict[str, Tensor]:
        """One file's tensors. Raises DamagedCheckpoint."""
        file = f"{name}.safetensors"

        def load(path: Path) -> dict[str, Tensor]:
            if _describe(path) != self.state["files"][file]:
                raise DamagedCheckpoint(f"{self.uri}/{file} has other bytes than were written")
            return load_file(path)

        try:
            return storage.read_file(storage.join(self.uri, file), load)
        except FileNotFoundError:
            raise DamagedCheckpoint(f"{self.uri}/{file} is missing") from None


def folder_of(artifact: str) -> str:
    """Where the checkpoints of a finetune artifact lie, finished or not."""
    return storage.join(artifact, ".train", "checkpoints")


def list_checkpoints(folder: str) -> list[Checkpoint]:
    """All finished ones, the oldest first."""
    files = storage.list_files(folder, f"/{STATE}")
    return [Checkpoint(file.removesuffix(f"/{STATE}"), json.loads(storage.read_bytes(file))) for file in files]


def load_newest(folder: str, names: list[str] | None = None) -> tuple[Checkpoint, dict[str, dict[str, Tensor]]] | None:
    """The newest whole checkpoint and its tensors (all files, or those named); None where there is none."""
    for checkpoint in reversed(list_checkpoints(folder)):
        try:
            return checkpoint, {name: checkpoint.read(name) for name in names or checkpoint.names}
        except DamagedCheckpoint as error:
            LOGGER.warning("%s; going on from the checkpoint before it", error)
    return None


def write_checkpoint(folder: str, tensors: Tensors, state: dict[str, Any], attempt: str) -> Checkpoint:
    """`state` is JSON with the `step`. Attempts write beside each other, never into each other's files."""
    uri = storage.join(folder, f"{state['step']:08}-{attempt}")
    files = {}
    with TemporaryDirectory() as scratch:
        for name, content in tensors.items():
            path = Path(scratch) / f"{name}.safetensors"
            save_file(dict(content), path)
            files[path.name] = _describe(path)
            storage.put_file(path, storage.join(uri, path.name))
            path.unlink()
    state = {**state, "attempt": attempt, "files": files}
    storage.write_bytes(storage.join(uri, STATE), json.dumps(state).encode())
    return Checkpoint(uri, state)


def prune(folder: str, settings: Checkpoints) -> list[Checkpoint]:
    """Delete all but the last `keep_last` and those at multiples of `keep_every`; and what was never finished, by a
    store that failed or an attempt that was lost. Only the newest attempt may, with nothing being written. Returns the
    checkpoints that are kept."""
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
