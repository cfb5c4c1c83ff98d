"""Ray Train's set-up of the workers, and with it what they do when their process is asked to end."""

from dataclasses import dataclass

from ray.train.torch import TorchConfig

from pipelines.finetune.attempt import note_sigterm

_TorchBackend = TorchConfig().backend_cls


class StoppableBackend(_TorchBackend):  # type: ignore[misc, valid-type]
    def on_start(self, worker_group, backend_config):
        super().on_start(worker_group, backend_config)
        worker_group.execute(note_sigterm)  # in each worker's main thread; the training has another


@dataclass
class StoppableTorch(TorchConfig):
    """As TorchConfig; and SIGTERM to a worker is noted, for the training to write a checkpoint first."""

    @property
    def backend_cls(self):
        return StoppableBackend
