"""Settings of the actors that a step runs on."""

from typing import Any

from pydantic import Field

from pipelines.core.config import Settings


class Workers(Settings):
    """The actors of a step, one CPU each."""

    workers: int = Field(2, ge=1)

    @property
    def gpus(self) -> float:
        return 0

    @property
    def options(self) -> dict[str, Any]:
        """Others of Ray's, for each actor."""
        return {}


class ModelWorkers(Workers):
    """Actors that each hold a model."""

    gpus_per_worker: float = Field(0, ge=0)

    @property
    def gpus(self) -> float:
        return self.gpus_per_worker

    @property
    def device(self) -> str:
        return "cuda" if self.gpus else "cpu"

    @property
    def precision(self) -> str:
        """Number type of a model on the device; it decides what comes out, so it belongs to a step's identity."""
        return "bfloat16" if self.gpus else "float32"
