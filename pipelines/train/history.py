"""Training history beside the checkpoints, in files of CHUNK steps, of which only the last one changes.

`state.json` lists the files with their checksums. So a checkpoint's state stays small however long the run is, and
writing one costs only the newest steps.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from pipelines.core import storage
from pipelines.train.metrics_log import CHUNK, MetricsLog

LOGGER = logging.getLogger(__name__)
Entry = dict[str, Any]
"""{"number", "file", "full", "sha256"} of one file"""


def history_folder(folder: str) -> str:
    """Return the history's folder below the artifact's `folder`."""
    return storage.join(folder, ".train", "history")


class HistoryWriter:
    """Writes the history of an attempt; full chunks are written once."""

    def __init__(self, folder: str, attempt: str, written: Iterable[Entry] = ()):
        """Continue from `written`, the entries of the checkpoint that the run resumes from."""
        self.folder, self.attempt = history_folder(folder), attempt
        self._full = {entry["number"]: entry for entry in written if entry["full"]}

    @property
    def full(self) -> frozenset[int]:
        """Return the numbers of the chunks that need not be written again."""
        return frozenset(self._full)

    def write(self, chunks: Mapping[int, dict[str, Any]]) -> list[Entry]:
        """Write the output of `MetricsLog.chunks`. Returns the entries of all chunks so far."""
        entries = dict(self._full)
        for number, rows in chunks.items():
            last = rows["steps"][-1]
            data = json.dumps(rows).encode()
            name = f"{number:05}-{last:08}-{self.attempt}.json"
            storage.write_bytes(storage.join(self.folder, name), data)
            full = last == (number + 1) * CHUNK
            entries[number] = {
                "number": number, "file": name, "full": full, "sha256": hashlib.sha256(data).hexdigest()
            }  # fmt: skip
            if full:
                self._full = {**self._full, number: entries[number]}  # another thread may be reading it
        return [entries[number] for number in sorted(entries)]


def summary_of(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a state's history that needs no files; see `MetricsLog.summary`."""
    return MetricsLog.from_json(state["record"]).summary() if "record" in state else state["summary"]


def read_metrics_log(folder: str, state: Mapping[str, Any]) -> MetricsLog:
    """Return the metrics log of a checkpoint from its state.

    A history file that is missing or damaged loses its steps, with a warning, and never the checkpoint.
    """
    if "record" in state:  # format of checkpoints before the history had its own files
        return MetricsLog.from_json(state["record"])
    chunks = []
    for entry in state["history"]:
        uri = storage.join(history_folder(folder), entry["file"])
        try:
            data = storage.read_bytes(uri)
        except FileNotFoundError:
            LOGGER.warning("%s is missing: its steps are left out of the curves", uri)
            continue
        if hashlib.sha256(data).hexdigest() != entry["sha256"]:
            LOGGER.warning("%s is damaged (SHA-256 differs): its steps are left out of the curves", uri)
            continue
        chunks.append(json.loads(data))
    return MetricsLog.from_parts(state["summary"], chunks)


def prune_history(folder: str, states: Iterable[Mapping[str, Any]]) -> None:
    """Delete the history files that no state lists."""
    listed = {entry["file"] for state in states for entry in state.get("history", [])}
    for uri in storage.list_files(history_folder(folder)):
        if uri.rpartition("/")[2] not in listed:
            storage.delete_file(uri)
