"""Ray Train's set-up of the workers: SIGTERM handling, and the limit of the wait for resources.

It is a module of its own because Ray's controller imports it, which otherwise would take seconds at each start for what
only the workers use.
"""

import os
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ray.train.torch import TorchConfig
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.controller.state import ReschedulingState, RunningState, SchedulingState

from pipelines.train.channel import Channel

_TorchBackend = TorchConfig().backend_cls


def _note_sigterm() -> None:
    from pipelines.train.run_lease import note_sigterm  # in the worker alone

    note_sigterm()


class StoppableBackend(_TorchBackend):  # type: ignore[misc, valid-type]
    """Torch backend whose workers handle SIGTERM."""

    def on_start(self, worker_group, backend_config):
        """Set up torch.distributed, and note SIGTERM in each worker."""
        super().on_start(worker_group, backend_config)
        worker_group.execute(_note_sigterm)  # in each worker's main thread; the training runs in another


@dataclass
class StoppableTorch(TorchConfig):
    """TorchConfig whose workers note SIGTERM, so that the training writes a checkpoint first."""

    @property
    def backend_cls(self):
        """Return the backend's class."""
        return StoppableBackend


class InsufficientResources(RuntimeError):
    """The cluster had no room for the workers within the time limit."""


class ControllerGuard(ControllerCallback, WorkerGroupCallback):
    """Ends Ray Train's controller if the cluster has no room for the workers, or the driver is gone.

    The controller itself would retry forever.
    """

    def __init__(self, seconds: float, attempt: str):
        """Wait at most `seconds` for the workers to start."""
        self.seconds, self.attempt = seconds, attempt
        self._since: float | None = None
        self._workers: Any = None
        self._is_abandoned = False

    def after_controller_start(self, train_run_context: Any) -> None:
        """Start the thread that polls whether the driver has stopped waiting."""
        threading.Thread(target=self._end_when_abandoned, daemon=True).start()

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Keep the worker group, to end it later."""
        self._workers = worker_group

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Raise InsufficientResources once the workers have waited too long."""
        if isinstance(current_state, RunningState):
            self._since = None
        elif isinstance(current_state, SchedulingState) and self._since is None:
            self._since = time.monotonic()
        elif isinstance(current_state, ReschedulingState) and self._since is not None:
            if self._is_abandoned or time.monotonic() - self._since >= self.seconds:
                raise InsufficientResources(f"no room for the workers for {self.seconds / 60:g} minutes")

    def _end_when_abandoned(self) -> None:
        channel = Channel(self.attempt)
        while not self._is_abandoned:
            time.sleep(1)
            with suppress(Exception):  # Ray's head may not answer for a while
                self._is_abandoned = channel.is_abandoned()
        if self._workers is None:
            return  # their placement group is released before the next state
        try:
            self._workers.abort()  # releases the placement group, which outlives the controller
        finally:
            os._exit(1)  # the controller's own thread may be blocked forever
