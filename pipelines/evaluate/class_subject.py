"""Evaluated class-conditional model: an artifact of the pretrain step, finished or at a checkpoint."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from asymflow.adapters import SamplingDefaults
from asymflow.devices import default_dtype
from pipelines.core import storage
from pipelines.core.artifacts import Artifact
from pipelines.core.config import ConfigError
from pipelines.sample.sampler import ImageSampler
from pipelines.train.checkpoint import folder_of, list_checkpoints
from pipelines.train.metrics_log import AVERAGE
from pipelines.train.pretrain.config import Validation
from pipelines.train.pretrain.model import SUBSPACE, SUMMARY, load_pretrained, read_pretrain_settings
from pipelines.train.pretrain.sampler import ClassSampler


@dataclass(frozen=True)
class ClassModel:
    """Interface of `pipelines.evaluate.subject.EvaluatedModel`; `trained` is its only model."""

    artifact: Artifact
    step: int | None
    """None: the end"""
    defaults: SamplingDefaults
    parts: Mapping[str, str]
    lineage: Mapping[str, str] = field(default_factory=dict)

    def identity(self, model: str) -> dict[str, str]:
        """Return what determines the model's images."""
        return {"model": model, **self.parts}

    def sampler(self, model: str, device: str) -> ImageSampler:
        """Return the model's sampler."""
        found = load_pretrained(self.artifact, self.step)
        found.set_precision(default_dtype(device))
        return ClassSampler(found.to(device), device)


def read_class_model(pretrained: Artifact, step: int | None) -> ClassModel:
    """Return the model of a pretrain artifact. Raises ConfigError if the step has no checkpoint."""
    settings, files = read_pretrain_settings(pretrained), pretrained.manifest["files"]
    sampling = settings.validation or Validation()
    height, width = json.loads(storage.read_bytes(pretrained.file(SUMMARY)))["size"]
    shift = settings.network.noise_scale  # steps that are even in the time of the network's own noise, as JiT's are
    defaults = SamplingDefaults(height, width, sampling.steps, sampling.guidance, shift, text_padding="none")
    if step == settings.optim.steps:
        step = None
    average = files[AVERAGE]["sha256"] if step is None else _checkpointed(pretrained, step)
    parts = {"average": average, "subspace": files[SUBSPACE]["sha256"], "jit": str(settings.jit)}
    if settings.network.noise_scale != 1:  # named only here, so that other models' images keep their identity
        parts["noise_scale"] = str(settings.network.noise_scale)
    return ClassModel(pretrained, step, defaults, parts)


def _checkpointed(pretrained: Artifact, step: int) -> str:
    checkpoints = list_checkpoints(folder_of(pretrained.uri))
    found = {c.step: c.state["files"]["average.safetensors"]["sha256"] for c in checkpoints}
    if step not in found:
        raise ConfigError(
            f"pretrained_step={step}: no such checkpoint; there are {sorted(found) or 'none'}; "
            "checkpoints.keep_every keeps some permanently"
        )
    return found[step]
