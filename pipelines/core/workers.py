"""Settings of a step's Ray actors."""

from typing import Any

from pydantic import BaseModel, Field

from pipelines.core.config import Settings


class Workers(Settings):
    """The actors of a step, one CPU each."""

    workers: int = Field(2, ge=1)

    @property
    def demand(self) -> dict[str, float]:
        """Return the resources of all actors together, by Ray's resource names."""
        return {"CPU": self.workers, "GPU": self.workers * self.gpus}

    @property
    def gpus(self) -> float:
        """Return the number of GPUs per actor."""
        return 0

    @property
    def options(self) -> dict[str, Any]:
        """Return further Ray options of each actor."""
        return {}


class ModelWorkers(Workers):
    """Actors that each hold a model."""

    gpus_per_worker: float = Field(0, ge=0)

    @property
    def gpus(self) -> float:
        """Return the number of GPUs per actor."""
        return self.gpus_per_worker

    @property
    def device(self) -> str:
        """Return torch's device of the model."""
        return "cuda" if self.gpus else "cpu"

    @property
    def precision(self) -> str:
        """Return the dtype of a model on the device. It affects the result, so it is part of an artifact's ID."""
        return "bfloat16" if self.gpus else "float32"


def peak_demand(settings: BaseModel) -> dict[str, float]:
    """Return the resources that a step uses at most at a time, by Ray's resource names.

    Its settings declare them: each section with a `demand` is a pool of actors, and pools run one after the other.
    """
    if hasattr(settings, "demand"):
        return {name: amount for name, amount in settings.demand.items() if amount}
    peak: dict[str, float] = {}
    for name in type(settings).model_fields:
        if isinstance(section := getattr(settings, name), BaseModel):
            for resource, amount in peak_demand(section).items():
                peak[resource] = max(amount, peak.get(resource, 0))
    return peak
