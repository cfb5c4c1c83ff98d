"""Finetune: the lifted model on real pixels, by Ray Train and DeepSpeed (Sec. 5.2, appendices A.3, A.4, B.2)."""

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
from pipelines.core.base_models import check_base, check_kind, check_padding
from pipelines.core.config import ConfigError
from pipelines.core.identity import fingerprint_of
from pipelines.core.step import Context, Step
from pipelines.data.basis.step import load_subspace
from pipelines.data.datasets import rows_by_group
from pipelines.data.embeddings import are_latents_stored, is_stored, latent_actors, text_actors, text_padding
from pipelines.data.encode import load_unconditional
from pipelines.train import driver
from pipelines.train.config import check_optimizer
from pipelines.train.devices import precision_name
from pipelines.train.driver import check_processors, draw, last_means
from pipelines.train.finetune.config import FinetuneSettings
from pipelines.train.finetune.perceptual import check_perceptual
from pipelines.train.metrics_log import AVERAGE, RECORD, Record


def check(settings: FinetuneSettings) -> None:
    from pipelines.train.finetune.export import check_export  # MLflow: in the driver alone, as in `build`

    check_export(settings)
    check_base(settings.base, ("transformer",))
    check_kind(settings.model, family_of(settings.base).backbone)
    check_padding(settings.base, settings.text_padding)
    if settings.loss.kind == "variance_reduced" and settings.loss.perceptual:
        check_perceptual(settings.loss.perceptual)
    check_optimizer(settings.optim)


def check_inputs(settings: FinetuneSettings, inputs: Mapping[str, Artifact]) -> None:
    """The basis fits the model, the encoding the pictures; and the base can encode the text that is left to it."""
    subspace, pixels = load_subspace(inputs["basis"]), settings.pixels
    if subspace.layout != pixels.layout:
        raise ConfigError(f"basis: its patches are {subspace.layout}, pixels.layout={pixels.layout!r} asks otherwise")
    if subspace.patch_dim != 3 * pixels.patch_size**2:
        raise ConfigError(
            f"basis: patches of {subspace.patch_dim} values; pixels.patch_size={pixels.patch_size} needs "
            f"{3 * pixels.patch_size**2}"
        )
    if not isinstance(subspace.space, OklabSpace):
        raise ConfigError("basis: made for sRGB; a finetune's pixels are in Oklab: make one with space=measured")
    mean, std = subspace.space.mean, subspace.space.std
    if pixels.mean is not None and tuple(pixels.mean) != tuple(mean):
        raise ConfigError(f"basis: made for an Oklab mean of {mean}, pixels.mean={pixels.mean} asks otherwise")
    if pixels.std is not None and pixels.std != std:
        raise ConfigError(f"basis: made for an Oklab std of {std}, pixels.std={pixels.std} asks otherwise")
    if inputs["encoded"].manifest["inputs"]["curated"] != inputs["curated"].id:
        raise ConfigError("encoded: made from another curated artifact than `curated`; run the encode step on it")
    encoded, encoders = inputs["encoded"], settings.resources
    if settings.text_padding != (padding := text_padding(encoded)):
        raise ConfigError(
            f"encoded: made with text_padding={padding}, text_padding={settings.text_padding} asks otherwise; run the "
            "encode step with it"
        )
    check_base(settings.base, text=not is_stored(encoded), images=not are_latents_stored(encoded))
    if settings.validation:
        check_base(settings.base, images=settings.model == "latent")
        found = sum(sum(rows_by_group(uri)) for uri in inputs["curated"].files("held_out", ".parquet"))
        if found < settings.validation.pictures:
            raise ConfigError(
                f"validation.pictures={settings.validation.pictures}: only {found} held-out pictures and captions "
                "stand; ask for fewer, or none with validation=null"
            )
    text = 0 if is_stored(encoded) else encoders.text_encoders.workers
    check_processors(settings, text + (0 if are_latents_stored(encoded) else encoders.image_encoders.workers))


def with_absolute_paths(settings: FinetuneSettings) -> FinetuneSettings:
    """For workers: Ray Train gives them another working directory."""
    loss, judge = settings.loss, settings.loss.perceptual
    if judge and Path(judge.weights).is_file():
        judge = judge.model_copy(update={"weights": storage.absolute(judge.weights)})
    return settings.model_copy(
        update={"base": storage.absolute(settings.base), "loss": loss.model_copy(update={"perceptual": judge})}
    )


def build(settings: FinetuneSettings, context: Context) -> dict[str, float]:
    from pipelines.train.finetune.export import export_adapter, picture_size, register

    settings = with_absolute_paths(settings)
    if not storage.exists(context.file(RECORD)):
        train(settings, context)
    record = Record.from_json(storage.read_bytes(context.file(RECORD)).decode())
    by_sigma = draw(record, context)
    storage.write_bytes(context.file("summary.json"), json.dumps({"by_sigma": by_sigma}).encode())
    average = storage.read_file(context.file(AVERAGE), load_file)
    size = picture_size(context.inputs["curated"])
    adapter = export_adapter(settings, load_subspace(context.inputs["basis"]), average, context.folder, size)
    register(context.tracker, adapter, settings, context.folder, len(record.steps))
    return last_means(record)


def train(settings: FinetuneSettings, context: Context) -> None:
    """From the newest checkpoint to the end, with the encoders beside: actors that make what the encode step left to
    them; none where it is stored. Raises StepFailed where it does not come to the end."""
    from pipelines.train.finetune.task import FinetuneTask  # the model: not to find an artifact again

    curated, encoded, resources = context.inputs["curated"], context.inputs["encoded"], settings.resources
    pictures, restarts = curated.files("train", ".parquet"), resources.max_failures
    with ExitStack() as stack:
        text = stack.enter_context(text_actors(encoded, settings.base, resources.text_encoders, restarts))
        images = stack.enter_context(latent_actors(encoded, settings.base, resources.image_encoders, restarts))
        data = {
            "subspace": context.inputs["basis"].file("subspace.safetensors"),
            "curated": pictures,
            "latents": encoded.files("latents/train", ".parquet") or [""] * len(pictures),
            "text": encoded.files("text/train", ".parquet"),
            "held_out": curated.files("held_out", ".parquet"),
            "held_out_text": encoded.files("text/held_out", ".parquet"),
            "text_encoders": text,
            "image_encoders": images,
            "unconditional": load_unconditional(encoded),
        }
        driver.train("finetune", FinetuneTask, settings, context, data)


def shown(settings: FinetuneSettings) -> dict[str, Any]:
    """All but a head that the model does not have."""
    return settings.model_dump(mode="json", exclude=None if settings.model == "ddt" else {"ddt"})


def decides(settings: FinetuneSettings, inputs: Mapping[str, Artifact]) -> dict[str, str]:
    """The precision of the training, and of encoders that run beside it; and the perceptual weights by content."""
    resources, encoded = settings.resources, inputs["encoded"]
    found = {"resources.precision": precision_name(resources)}
    if not is_stored(encoded):
        found["resources.text_encoders.precision"] = resources.text_encoders.precision
    if not are_latents_stored(encoded):
        found["resources.image_encoders.precision"] = resources.image_encoders.precision
    judge = settings.loss.perceptual
    if judge and judge.weights not in ("published", "random") and (content := fingerprint_of(judge.weights)):
        found["loss.perceptual.weights"] = content
    return found


STEP = Step(
    "finetune",
    FinetuneSettings,
    build,
    inputs=FinetuneSettings.inputs,
    check=check,
    check_inputs=check_inputs,
    contents=("base",),
    decides=decides,
    title=lambda settings: settings.model,
    group=lambda settings: "train/end",
    shown=shown,
)
