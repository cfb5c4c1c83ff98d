"""Base of scorers: settings of a metric model, its identity without loading it, and its scoring function."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from asymflow.metrics.protocol import Protocol
from pipelines.core.config import Settings
from pipelines.core.workers import ModelWorkers

if TYPE_CHECKING:  # settings are read without torch; `load` imports the model's module
    from torch import Tensor

    from pipelines.evaluate.prompts import Prompt

OPEN_CLIP = "open_clip_model.safetensors"
Row = dict[str, Any]
Score = Callable[["Tensor", Sequence["Prompt"]], list[Row]]
"""Maps uint8 images (B, 3, H, W) and their prompts to rows of numbers, texts, lists, and features as tensors"""


class Resources(ModelWorkers):
    """Workers of a scorer."""

    workers: int = Field(1, ge=1)
    batch: int = Field(16, ge=1)
    """Images scored together"""
    environment: dict[str, Any] = {}
    """A Ray runtime environment of its own, for incompatible packages: {py_executable: PYTHON}, ..."""

    @property
    def options(self) -> dict[str, Any]:
        """Return Ray's options of the actors."""
        return {"runtime_env": self.environment} if self.environment else {}


class Scorer(Settings, ABC):
    """Settings of a scorer."""

    resources: Resources = Resources()

    def identity(self) -> dict[str, Any]:
        """Return what determines its numbers, as JSON. Raises MissingWeights."""
        return {name: value for name, value in self.model_dump(mode="json").items() if name != "resources"}

    @abstractmethod
    def load(self, device: str) -> tuple[Score, Protocol]:
        """Return the scoring function and its protocol."""


class ModelScorer(Scorer):
    """A scorer with a model."""

    model: str = ""
    """Here and in other settings of models: a path, or OWNER/NAME@REVISION on the hub"""

    needed: ClassVar[Mapping[str, tuple[str, str]]] = {}
    """{setting: (description of the required model, its file or empty)}"""
    files: ClassVar[tuple[str, ...]] = ()
    """Settings that may name a local file, identified by content"""
    half_on_gpu: ClassVar[bool] = False
    """Whether it computes in bfloat16 on a GPU, which changes its numbers"""

    def identity(self) -> dict[str, Any]:
        """Return what determines its numbers; models are identified by content. Raises MissingWeights."""
        from asymflow.metrics.weights import MissingWeights, identify

        found = {}
        for name, (needed, file) in self.needed.items():
            try:
                found[name] = identify(getattr(self, name), needed, file)
            except MissingWeights as error:
                raise MissingWeights(f"{name}: {error}") from None
        found |= {name: content for name in self.files if (content := content_fingerprint(getattr(self, name)))}
        if self.half_on_gpu and self.resources.gpus:
            found["precision"] = self.resources.precision
        return {**super().identity(), **found}


def as_rows(call: "Callable[[Tensor, list[str]], Tensor]") -> Score:
    """Return the scoring function of a metric that maps images and their prompts to one score per image."""

    def score(images: "Tensor", prompts: "Sequence[Prompt]") -> list[Row]:
        return [{"score": value} for value in call(images, [prompt.text for prompt in prompts]).tolist()]

    return score


def content_fingerprint(source: str) -> str:
    """Return a hash of a local file or folder; empty for other sources."""
    from pipelines.core.identity import fingerprint_of  # imports pyarrow: settings are read without it

    return fingerprint_of(source)
