"""Write a run's checkpoints with their history and unsent metrics, on rank 0."""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

from pipelines.core import s3, storage
from pipelines.core.tracking import MetricsRow
from pipelines.train.channel import Channel
from pipelines.train.checkpoint import Tensors, folder_of, prune, write_checkpoint
from pipelines.train.config import Checkpoints
from pipelines.train.history import HistoryWriter, prune_history, read_metrics_log
from pipelines.train.metrics_log import MetricsLog
from pipelines.train.run_lease import RunLease
from pipelines.train.state import copy_to_cpu
from pipelines.train.tracking_log import write_unsent
from pipelines.train.uploader import Uploader

LOGGER = logging.getLogger(__name__)


class Checkpointer:
    """Writes checkpoints of one attempt in the background, and reports the last complete one to the driver."""

    def __init__(
        self, lease: RunLease, settings: Checkpoints, channel: Channel, unsent: Callable[[], Iterable[MetricsRow]]
    ):
        self.lease, self.settings, self.channel, self.unsent = lease, settings, channel, unsent
        self.uploader = Uploader(self._write)
        self.history = HistoryWriter(lease.folder, lease.name)

    def resume(self, state: Mapping[str, Any]) -> MetricsLog:
        """Continue a checkpoint's history; returns its metrics log."""
        self.history = HistoryWriter(self.lease.folder, self.lease.name, state.get("history", []))
        self.uploader.good = state["step"]
        return read_metrics_log(self.lease.folder, state)

    def submit(
        self, tensors: Mapping[str, Mapping[str, Tensor]], state: dict[str, Any], metrics_log: MetricsLog
    ) -> None:
        """Schedule a checkpoint of `tensors` (copied), `state` with its `step`, and the metrics so far."""
        copies = {name: copy_to_cpu(part) for name, part in tensors.items()}
        chunks = metrics_log.chunks(self.history.full)
        self.uploader.submit(copies, {**state, "summary": metrics_log.summary(), "chunks": chunks})

    def end(self) -> dict[str, Any]:
        """Return {"good": step of the last complete checkpoint or None, "reason": why the last one failed}."""
        return {"good": self.uploader.good, "reason": self.uploader.reason}

    def _write(self, tensors: Tensors, state: dict[str, Any]) -> None:
        """Write a checkpoint, in the uploader's thread."""
        if self.lease.is_fenced():
            raise RuntimeError("a newer attempt of this run has taken over")
        write_unsent(self.lease.folder, self.unsent())
        state["history"] = self.history.write(state.pop("chunks"))
        write_checkpoint(folder_of(self.lease.folder), tensors, state, self.lease.name)
        self.uploader.good = state["step"]  # before pruning, which may fail
        self.channel.report(good=state["step"])
        try:
            with s3.single_attempts():  # retried with the next checkpoint
                kept = prune(folder_of(self.lease.folder), self.settings)
                prune_history(self.lease.folder, [checkpoint.state for checkpoint in kept])
        except (OSError, storage.StorageError) as error:  # the checkpoint is complete; pruning is retried with the next
            LOGGER.warning("old checkpoints could not be deleted: %s", error)
