"""Finetune step: train the lifted model on pixels with Ray Train and DeepSpeed (Sec. 5.2, App. A.3, A.4, B.2)."""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from asymflow.models.latent import family_of
from asymflow.oklab import OklabSpace
from pipelines.core import storage
from pipelines.core.artifacts import Artifact
from pipelines.core.base_models import check_base, check_gguf, check_padding, check_unquantized
from pipelines.core.config import ConfigError, read_json_setting
from pipelines.core.identity import fingerprint_of
from pipelines.core.step import Context, Step
from pipelines.data.datasets import find_test_split, has_references
from pipelines.data.embeddings import are_latents_stored, is_stored, latent_actors, text_actors, text_padding
from pipelines.data.encode import load_unconditional
from pipelines.train import driver
from pipelines.train.config import check_bitsandbytes, check_optimizer
from pipelines.train.devices import precision_name
from pipelines.train.driver import check_processors, last_means, log_curves
from pipelines.train.finetune.config import FinetuneSettings
from pipelines.train.finetune.export_config import check_export
from pipelines.train.finetune.flops import check_model
from pipelines.train.finetune.perceptual import check_perceptual
from pipelines.train.finetune.start import basis_file, check_start, find_basis
from pipelines.train.metrics_log import AVERAGE, METRICS_LOG, MetricsLog


def check(settings: FinetuneSettings) -> None:
    """Check base model, perceptual weights, optimizer and export before Ray starts. Raises ConfigError."""
    check_export(settings)
    check_base(settings.base, ("transformer",))
    transformer = Path(settings.base) / "transformer" / "config.json"
    check_model(settings, read_json_setting(transformer, f"base={settings.base!r}"))
    check_padding(settings.base, settings.text_padding)
    # its first and last layers must be full
    check_unquantized(
        settings.base, "give the full pipeline, and quantize it while it is trained with base_quantization=nf4"
    )
    resources = settings.resources
    check_gguf(settings.base, settings.base_quantization, resources.zero_stage, resources.gradient_checkpointing)
    if settings.loss.kind == "variance_reduced" and settings.loss.perceptual:
        check_perceptual(settings.loss.perceptual)
    check_optimizer(settings.optim)
    if settings.base_quantization in ("nf4", "int8"):
        check_bitsandbytes(f"base_quantization={settings.base_quantization}")


def check_inputs(settings: FinetuneSettings, inputs: Mapping[str, Artifact]) -> None:
    """Check that basis, encoding, images and base fit together, and that there are enough processors.

    Raises:
        ConfigError: two of them do not fit.
    """
    subspace, pixels = find_basis(settings, inputs), settings.pixels
    if subspace.layout != pixels.layout:
        raise ConfigError(f"basis: its patches are {subspace.layout}, but pixels.layout={pixels.layout!r}")
    if subspace.patch_dim != 3 * pixels.patch_size**2:
        raise ConfigError(
            f"basis: patches of {subspace.patch_dim} values; pixels.patch_size={pixels.patch_size} needs "
            f"{3 * pixels.patch_size**2}"
        )
    if not isinstance(subspace.space, OklabSpace):
        raise ConfigError("basis: made for sRGB; a finetune needs Oklab: run the basis step with space=measured")
    mean, std = subspace.space.mean, subspace.space.std
    if pixels.mean is not None and tuple(pixels.mean) != tuple(mean):
        raise ConfigError(f"basis: made for an Oklab mean of {mean}, but pixels.mean={pixels.mean}")
    if pixels.std is not None and pixels.std != std:
        raise ConfigError(f"basis: made for an Oklab std of {std}, but pixels.std={pixels.std}")
    if inputs["encoded"].manifest["inputs"]["curated"] != inputs["curated"].id:
        raise ConfigError("encoded: made from another curated artifact than `curated`; run the encode step on it")
    encoded, encoders = inputs["encoded"], settings.resources
    if settings.text_padding != (padding := text_padding(encoded)):
        raise ConfigError(
            f"encoded: made with text_padding={padding}, but text_padding={settings.text_padding} here; run the "
            "encode step with it"
        )
    check_edits(settings, inputs["curated"])
    if settings.start_from:
        check_start(settings, subspace)
    check_base(settings.base, text=not is_stored(encoded), images=not are_latents_stored(encoded))
    if settings.validation:
        files = [validation_files(settings, inputs["curated"], split) for split in ("train", "held_out")]
        shows_edits = any(map(has_references, sum(files, [])))
        check_base(settings.base, images=settings.model == "latent" or shows_edits)
    text = 0 if is_stored(encoded) else encoders.text_encoders.workers
    check_processors(settings, text + (0 if are_latents_stored(encoded) else encoders.image_encoders.workers))


def check_edits(settings: FinetuneSettings, curated: Artifact) -> None:
    """Check that there are rows of the kinds that `edit_share` needs, and that the base takes reference images.

    Raises:
        ConfigError: There are not, or it does not.
    """
    kinds, share = set(map(has_references, curated.files("train", ".parquet"))), settings.edit_share
    if share and True not in kinds:
        remedy = "curate some with columns.references, or leave edit_share empty"
        raise ConfigError(f"edit_share={share:g}: curated has no edits; {remedy}")
    if share is not None and share < 1 and False not in kinds:
        raise ConfigError(f"edit_share={share:g}: curated has only edits; add text-to-image rows, or set edit_share=1")
    backbone = family_of(settings.base).backbone
    if share != 0 and True in kinds and not backbone.takes_references:
        raise ConfigError(
            f"curated: has edits, but a {backbone.transformer} takes no reference images; set edit_share=0, or curate "
            "without columns.references"
        )


def validation_files(settings: FinetuneSettings, artifact: Artifact, folder: str) -> list[str]:
    """Return the files of the rows that are validated on: those of edits only if edits are trained on."""
    files = artifact.files(folder, ".parquet")
    return [file for file in files if settings.edit_share != 0 or not has_references(file)]


def with_absolute_paths(settings: FinetuneSettings) -> FinetuneSettings:
    """Return the settings with absolute paths: Ray Train's workers have another working directory."""
    loss, perceptual, start_from = settings.loss, settings.loss.perceptual, settings.start_from
    if perceptual and Path(perceptual.weights).is_file():
        perceptual = perceptual.model_copy(update={"weights": storage.absolute(perceptual.weights)})
    changes = {"base": storage.absolute(settings.base), "loss": loss.model_copy(update={"perceptual": perceptual})}
    if start_from and Path(start_from).is_dir():
        changes["start_from"] = storage.absolute(start_from)
    return settings.model_copy(update=changes)


def build(settings: FinetuneSettings, context: Context) -> dict[str, float]:
    """Train unless the result exists, write curves, adapter and summary, and register the adapter."""
    from pipelines.train.finetune.export import export_adapter, image_size, register

    settings = with_absolute_paths(settings)
    if not storage.exists(context.file(METRICS_LOG)):
        train(settings, context)
    metrics_log = MetricsLog.from_json(storage.read_bytes(context.file(METRICS_LOG)).decode())
    by_sigma = log_curves(metrics_log, context)
    storage.write_bytes(context.file("summary.json"), json.dumps({"by_sigma": by_sigma}).encode())
    average = storage.read_file(context.file(AVERAGE), load_file)
    size = image_size(context.inputs["curated"])
    adapter = export_adapter(settings, find_basis(settings, context.inputs), average, context.folder, size)
    register(context.tracker, adapter, settings, context.folder, len(metrics_log.steps))
    return last_means(metrics_log)


def train(settings: FinetuneSettings, context: Context) -> None:
    """Train to the end, with actors for the encoders that the encode step did not run. Raises StepFailed."""
    from pipelines.train.finetune.task import FinetuneTask  # imports the model, which a cached artifact does not need

    curated, encoded, resources = context.inputs["curated"], context.inputs["encoded"], settings.resources
    files, restarts = curated.files("train", ".parquet"), resources.max_failures
    shown = find_test_split(curated, edits=settings.edit_share != 0) if settings.validation else "held_out"
    with ExitStack() as stack:
        text = stack.enter_context(text_actors(encoded, settings.base, resources.text_encoders, restarts))
        images = stack.enter_context(latent_actors(encoded, settings.base, resources.image_encoders, restarts))
        data = {
            "subspace": basis_file(settings, context.inputs, context.folder),
            "curated": files,
            "latents": encoded.files("latents/train", ".parquet") or [""] * len(files),
            "text": encoded.files("text/train", ".parquet"),
            "held_out": validation_files(settings, curated, shown),
            "held_out_text": validation_files(settings, encoded, f"text/{shown}"),
            "text_encoders": text,
            "image_encoders": images,
            "unconditional": load_unconditional(encoded),
        }
        driver.train("finetune", FinetuneTask, settings, context, data)


def shown(settings: FinetuneSettings) -> dict[str, Any]:
    """Return the settings to log: without those of other kinds of models."""
    return settings.model_dump(mode="json", exclude={"ddt", "l2p"} - {settings.model})


def hash_overrides(settings: FinetuneSettings, inputs: Mapping[str, Artifact]) -> dict[str, str]:
    """Return what else determines the result: precisions, and the perceptual weights by content."""
    resources, encoded = settings.resources, inputs["encoded"]
    found = {"resources.precision": precision_name(resources)}
    if not is_stored(encoded):
        found["resources.text_encoders.precision"] = resources.text_encoders.precision
    if not are_latents_stored(encoded):
        found["resources.image_encoders.precision"] = resources.image_encoders.precision
    weights = settings.loss.perceptual.weights if settings.loss.perceptual else "published"
    if weights not in ("published", "random") and (content := fingerprint_of(weights)):
        found["loss.perceptual.weights"] = content
    return found


STEP = Step(
    "finetune",
    FinetuneSettings,
    build,
    inputs=FinetuneSettings.inputs,
    check=check,
    check_inputs=check_inputs,
    contents=("base", "start_from"),
    repositories=("start_from",),
    hash_overrides=hash_overrides,
    title=lambda settings: settings.model,
    group=lambda settings: "train/end",
    shown=shown,
)
