"""Ray Train's set-up of the workers, and with it what they do when their process is asked to end.

It stands apart from the finetune because Ray's controller imports it, and would otherwise take seconds at each start
for what only the workers use.
"""

from dataclasses import dataclass

from ray.train.torch import TorchConfig

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
