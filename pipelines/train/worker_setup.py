"""Ray Train's set-up of the workers: what they do when their process is asked to end, and how long they are waited for.

It is apart from the trainings because Ray's controller imports it, and would otherwise take seconds at each start for
what only the workers use.
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
    def on_start(self, worker_group, backend_config):
        super().on_start(worker_group, backend_config)
        worker_group.execute(_note_sigterm)  # in each worker's main thread; the training has another


@dataclass
class StoppableTorch(TorchConfig):
    """As TorchConfig; and SIGTERM to a worker is noted, for the training to write a checkpoint first."""

    @property
    def backend_cls(self):
        return StoppableBackend


class NoRoom(RuntimeError):
    """The cluster has had no room for the workers for as long as they may be waited for."""


class ControllerGuard(ControllerCallback, WorkerGroupCallback):
    """In Ray Train's controller: gives up where there is no room for the workers, which the controller itself would try
    to start for ever; and ends, with the workers, where the driver does not wait for them any more."""

    def __init__(self, seconds: float, attempt: str):
        """Wait at most so many seconds for the workers to start."""
        self.seconds, self.attempt = seconds, attempt
        self._since: float | None = None
        self._workers: Any = None
        self._is_abandoned = False

    def after_controller_start(self, train_run_context: Any) -> None:
        threading.Thread(target=self._end_when_abandoned, daemon=True).start()

    def after_worker_group_start(self, worker_group: Any) -> None:
        self._workers = worker_group

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        if isinstance(current_state, RunningState):
            self._since = None
        elif isinstance(current_state, SchedulingState) and self._since is None:
            self._since = time.monotonic()
        elif isinstance(current_state, ReschedulingState) and self._since is not None:
            if self._is_abandoned or time.monotonic() - self._since >= self.seconds:
                raise NoRoom(f"no room for the workers for {self.seconds / 60:g} minutes")

    def _end_when_abandoned(self) -> None:
        channel = Channel(self.attempt)
        while not self._is_abandoned:
            time.sleep(1)
            with suppress(Exception):  # Ray's head may not answer for a while
                self._is_abandoned = channel.is_abandoned()
        if self._workers is None:
            return  # their place is given back before the next state
        try:
            self._workers.abort()  # gives back their place, which outlives the controller
        finally:
            os._exit(1)  # the controller's own thread may be waiting for what never comes
