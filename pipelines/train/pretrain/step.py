"""Pretrain step: a class-conditional pixel model from scratch, of any rank from x_0- to u-prediction (Sec. 6.1)."""

import json
from collections.abc import Mapping
from typing import Any

from asymflow.models.dinov2 import check_dinov2
from asymflow.models.jit import LAYOUT
from asymflow.srgb import SrgbSpace
from asymflow.subspace import Subspace
from pipelines.core import storage
from pipelines.core.artifacts import Artifact
from pipelines.core.config import ConfigError
from pipelines.core.step import Context, Step
from pipelines.data.basis.step import load_subspace
from pipelines.train import driver
from pipelines.train.config import check_optimizer
from pipelines.train.devices import precision_name
from pipelines.train.driver import check_processors, last_means, log_curves
from pipelines.train.metrics_log import METRICS_LOG, MetricsLog
from pipelines.train.pretrain.config import PretrainSettings
from pipelines.train.pretrain.model import SUBSPACE, SUMMARY, make_subspace


def check(settings: PretrainSettings) -> None:
    """Check encoder, optimizer and processors before Ray starts. Raises ConfigError."""
    if settings.repa:
        try:
            check_dinov2(settings.repa.encoder)
        except ValueError as error:
            raise ConfigError(f"repa.encoder: {error}") from None
    check_optimizer(settings.optim)
    check_processors(settings)


def check_inputs(settings: PretrainSettings, inputs: Mapping[str, Artifact]) -> None:
    """Check that images and basis fit the settings. Raises ConfigError."""
    curated = inputs["curated"]
    if not curated.manifest["config"].get("labels"):
        raise ConfigError("curated: its images have no labels; curate them with labels=folder or labels=column")
    size, patch = size_of(curated), settings.jit.patch_size
    if size[0] % patch or size[1] % patch:
        raise ConfigError(f"network.patch_size={patch}: does not divide images of {size[1]}x{size[0]}")
    if settings.needs_basis:
        try:
            make_subspace(settings, pca_of(settings, inputs))
        except ValueError as error:
            raise ConfigError(f"basis: {error}") from None


def size_of(curated: Artifact) -> tuple[int, int]:
    """Return (height, width) of the images. Raises ConfigError if there are several sizes."""
    buckets = curated.manifest["config"]["buckets"]
    if len(buckets) > 1:
        raise ConfigError("curated: has images of several sizes; curate with one bucket")
    width, height = buckets[0]
    return height, width


def pca_of(settings: PretrainSettings, inputs: Mapping[str, Artifact]) -> Subspace | None:
    """Return the basis step's PCA, channel last; None if none is needed. Raises ValueError for another color space."""
    if not settings.needs_basis:
        return None
    artifact = inputs["basis"]
    other = artifact.manifest["config"]["layout"] != LAYOUT
    found = load_subspace(artifact, f"pca_{LAYOUT}" if other else "pca")
    if not isinstance(found.space, SrgbSpace):
        raise ValueError("it was made for Oklab; run the basis step with space=srgb")
    return found


def build(settings: PretrainSettings, context: Context) -> dict[str, float]:
    """Train unless the result exists, and write curves and summary."""
    from pipelines.train.pretrain.task import PretrainTask  # takes seconds, which a cached artifact does not need

    settings = with_absolute_paths(settings)
    if not storage.exists(context.file(METRICS_LOG)):
        subspace = make_subspace(settings, pca_of(settings, context.inputs))
        storage.write_file(context.file(SUBSPACE), subspace.save)
        curated = context.inputs["curated"]
        data = {
            "subspace": context.file(SUBSPACE),
            "curated": curated.files("train", ".parquet"),
            "size": size_of(curated),
        }
        driver.train("pretrain", PretrainTask, settings, context, data)
    metrics_log = MetricsLog.from_json(storage.read_bytes(context.file(METRICS_LOG)).decode())
    summary = {"by_sigma": log_curves(metrics_log, context), "size": size_of(context.inputs["curated"])}
    storage.write_bytes(context.file(SUMMARY), json.dumps(summary).encode())
    return last_means(metrics_log)


def with_absolute_paths(settings: PretrainSettings) -> PretrainSettings:
    """Return the settings with absolute paths: Ray Train's workers have another working directory."""
    if settings.repa is None:
        return settings
    repa = settings.repa.model_copy(update={"encoder": storage.absolute(settings.repa.encoder)})
    return settings.model_copy(update={"repa": repa})


def title(settings: PretrainSettings) -> str:
    """Return the name of the MLflow run."""
    kind = "random " if settings.subspace.kind == "random" else ""
    return f"{kind}r{settings.subspace.rank}{' repa' if settings.repa else ''}"


def shown(settings: PretrainSettings) -> dict[str, Any]:
    """Return the settings to log, with the network's resolved shapes."""
    tree = settings.model_dump(mode="json")
    return tree | {"network": {**tree["network"], **vars(settings.jit)}}


STEP = Step(
    "pretrain",
    PretrainSettings,
    build,
    inputs=PretrainSettings.inputs,
    check=check,
    check_inputs=check_inputs,
    contents=("repa.encoder",),
    hash_overrides=lambda settings, inputs: {"resources.precision": precision_name(settings.resources)},
    title=title,
    group=lambda settings: "train/end",
    shown=shown,
)
