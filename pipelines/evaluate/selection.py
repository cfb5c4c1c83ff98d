"""Suite, models, prompts, scorers and measures of the settings; and what else determines the result."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from itertools import islice
from typing import Any

from asymflow.metrics.weights import MissingWeights
from pipelines.core.artifacts import Artifact
from pipelines.core.config import ConfigError
from pipelines.evaluate.config import EvaluateSettings, Model
from pipelines.evaluate.measures import Measure
from pipelines.evaluate.prompts import Prompt, read_held_out
from pipelines.evaluate.suites import SUITES, Suite

ADAPTER = "adapter"
"""Folder in a finetune's artifact"""
ADAPTER_WEIGHTS = "adapter/diffusion_pytorch_model.safetensors"
"""File in a finetune's artifact: `asymflow.adapters.WEIGHTS` below ADAPTER, without importing what loads diffusers"""


def suite_of(settings: EvaluateSettings) -> Suite:
    """Return the suite."""
    return SUITES[settings.suite]


def column_of(suite: Suite) -> str:
    """Return the column of held-out rows that holds the suite's prompts."""
    return "label" if suite.by_class else "caption"


def models_of(settings: EvaluateSettings) -> list[Model]:
    """Return the evaluated models."""
    return ["trained"] if settings.pictures else settings.models or list(suite_of(settings).models)


def repeats_of(settings: EvaluateSettings) -> int:
    """Return the images per prompt."""
    return settings.images_per_prompt or suite_of(settings).images_per_prompt


def scorers_of(settings: EvaluateSettings) -> list[str]:
    """Return the names of the scorers in use."""
    return [name for name in suite_of(settings).scorers if name not in settings.leave_out]


def measures_of(settings: EvaluateSettings) -> list[Measure]:
    """Return the measures whose scorers are in use."""
    scorers = {"", *scorers_of(settings)}
    return [measure for measure in suite_of(settings).measures if measure.scorer in scorers]


def read_prompts(settings: EvaluateSettings, curated: Artifact | None) -> list[Prompt]:
    """Return the prompts to evaluate.

    Args:
        settings: settings of the evaluation.
        curated: artifact with held-out captions, for suites that use them.

    Raises:
        ConfigError: there are too few, or not the benchmark's number.
    """
    suite, count = suite_of(settings), settings.prompts.count
    if suite.read is None:
        found = [prompt for prompt, _ in islice(read_held_out(curated, column_of(suite)), count)] if curated else []
    elif suite.file and not settings.prompts.file:
        raise ConfigError(f"prompts.file: missing; {suite.file}")
    else:
        found = suite.read(settings.prompts.file, settings.prompts.column)
    if suite.prompts and count is None and len(found) != suite.prompts:
        raise ConfigError(
            f"prompts.file={settings.prompts.file!r}: has {len(found)} prompts, {settings.suite} has {suite.prompts}; "
            "prompts.count=N takes the first N, which the results note"
        )
    if not found or (count and len(found) < count):
        raise ConfigError(f"prompts.count={count}: there are only {len(found)}")
    return found[:count]


def hash_overrides(settings: EvaluateSettings, inputs: Mapping[str, Artifact]) -> dict[str, Any]:
    """Return what else determines the result.

    These are the precision of sampling, the scorers in use by their models' content, and, for artifacts whose ID does
    not tell, the checkpoint and the sampling defaults of the model.
    """
    found: dict[str, Any] = {} if settings.pictures else {"resources.precision": settings.resources.precision}
    if pretrained := inputs.get("pretrained"):
        from pipelines.evaluate.class_subject import read_class_model  # loads diffusers

        subject = read_class_model(pretrained, settings.pretrained_step)
        found["pretrained_step"] = {"parts": subject.parts, "sampling": asdict(subject.defaults)}
    if finetuned := inputs.get("finetuned"):
        found["finetuned"] = finetuned.manifest["files"].get(ADAPTER_WEIGHTS, {}).get("sha256", "")
    if settings.suite in SUITES:
        with suppress(MissingWeights):  # `check` reports them
            found["scorers"] = {name: getattr(settings.scorers, name).identity() for name in scorers_of(settings)}
    return found
