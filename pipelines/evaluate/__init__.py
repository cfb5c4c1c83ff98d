"""Evaluate: sample before and after training, show the pictures, and measure their distance to real ones."""

import io
import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from asymflow.metrics.sliced_wasserstein import image_sliced_wasserstein
from asymflow.metrics.spectrum import high_frequency_power_ratio, spectrum_distance
from pipelines import storage
from pipelines.artifacts import Artifact
from pipelines.config import ConfigError, Uri
from pipelines.datasets import pixels_of, read_rows, rows_by_group
from pipelines.embeddings import is_stored
from pipelines.evaluate.generate import MODELS, Generator, samples_file
from pipelines.models import check_base
from pipelines.pictures import side_by_side, to_pictures
from pipelines.prompts import Prompts
from pipelines.shards import ModelWorkers, map_items
from pipelines.steps import Context, Step, StepSettings

INPUTS = {"curated": "curate", "encoded": "encode", "basis": "basis", "finetuned": "finetune"}


class Resources(ModelWorkers):
    batch: int = Field(32, ge=1)
    """Pictures sampled together"""


class EvaluateSettings(StepSettings):
    curated: Uri
    """Artifact of the curate step: held-out real pictures"""
    encoded: Uri
    """Artifact of the encode step: the prompts"""
    basis: Uri
    """Artifact of the basis step"""
    finetuned: Uri
    """Artifact of the finetune step"""
    base: Uri
    """Folder of the latent model"""
    samples: int = Field(128, ge=1)
    """Pictures a seed and model; prompts are the first held-out captions"""
    seeds: list[int] = Field([0, 1, 2], min_length=1)
    steps: int = Field(32, ge=2)
    guidance: float = Field(4.0, ge=1)
    orthogonal: bool = True
    """APG: no guidance along the denoised sample"""
    shift: float = Field(17.0, gt=0)
    """Flow shift of pixel sampling"""
    latent_shift: float = Field(7.0, gt=0)
    """Flow shift of the latent model"""
    shown: int = Field(10, ge=1)
    """Rows of the picture"""
    resources: Resources = Resources()


def check(settings: EvaluateSettings) -> None:
    check_base(settings.base, ("transformer",), images=True)
    if settings.shown > settings.samples:
        raise ConfigError(f"shown={settings.shown}: must be at most samples={settings.samples}")


def check_inputs(settings: EvaluateSettings, inputs: Mapping[str, Artifact]) -> None:
    available = _held_out_rows(inputs["curated"])
    if settings.samples > available:
        raise ConfigError(f"samples={settings.samples}: only {available} held-out pictures and captions stand")
    if not is_stored(inputs["encoded"]):
        check_base(settings.base, text=True)


def _held_out_rows(curated: Artifact) -> int:
    return sum(sum(rows_by_group(uri)) for uri in curated.files("held_out", ".parquet"))


def build(settings: EvaluateSettings, context: Context) -> dict[str, float]:
    prompts = Prompts(
        curated=context.inputs["curated"].files("held_out", ".parquet"),
        text=context.inputs["encoded"].files("text/held_out", ".parquet"),
        count=settings.samples,
    )
    size = settings.resources.batch
    items = {
        f"{model}-{seed}-{start}": json.dumps([model, seed, start, min(start + size, settings.samples)])
        for model in MODELS
        for seed in settings.seeds
        for start in range(0, settings.samples, size)
    }
    inputs = dict(context.inputs)
    make_worker = partial(Generator, settings, inputs, prompts, context.folder)
    summaries = map_items(items, make_worker, context.folder, settings.resources)
    made: dict[tuple[str, int], list[Tensor]] = {}
    for summary in summaries:
        model, seed, start, _ = json.loads(summary["item"])
        images = pictures_in(samples_file(context.folder, model, seed, start))
        made.setdefault((model, seed), []).append(images)
    samples = {key: torch.cat(parts) for key, parts in made.items()}
    real = torch.cat([images for images in prompts.images()])[: settings.samples]
    show(settings, context, prompts, real, samples)
    return measure(settings, context, real, samples)


def pictures_in(uri: str) -> Tensor:
    """(B, 3, H, W) in [-1, 1], from a samples file."""
    return torch.cat([pixels_of(rows["image"]) for rows in read_rows(uri, ["image"])])


def distances(images: Tensor, real: Tensor) -> dict[str, float]:
    """The weight-free distances of pictures in [-1, 1] to as many real ones."""
    wasserstein = image_sliced_wasserstein(images, real)
    return {
        "sliced_wasserstein": wasserstein["raw"],
        "sliced_wasserstein_high_pass": wasserstein["high_pass"],
        "spectrum": spectrum_distance(images, real),
        "high_frequency_power": high_frequency_power_ratio(images, real),
    }


def measure(
    settings: EvaluateSettings, context: Context, real: Tensor, samples: dict[tuple[str, int], Tensor]
) -> dict[str, float]:
    """Distances by model and seed, written as a table; the metrics are means over seeds."""
    rows: list[dict[str, Any]] = []
    for (model, seed), images in samples.items():
        rows.append({"model": model, "seed": seed, **distances(images, real)})
    halves = real.chunk(2)
    rows.append({"model": "real", "seed": -1, **distances(halves[0], halves[1][: len(halves[0])])})
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    context.tracker.log_table("distances", columns)
    storage.write_bytes(context.file("distances.json"), json.dumps(rows, indent=1).encode())
    means: dict[str, float] = {}
    names = [n for n in rows[0] if n not in ("model", "seed")]
    for model in dict.fromkeys(row["model"] for row in rows):
        for name in names:
            values = [row[name] for row in rows if row["model"] == model]
            means[f"{model}/{name}"] = sum(values) / len(values)
    return means


def show(
    settings: EvaluateSettings,
    context: Context,
    prompts: Prompts,
    real: Tensor,
    samples: dict[tuple[str, int], Tensor],
) -> None:
    """The picture: real | decoded latent sample | lifted, before training | after, for the same captions and noise."""
    seed, n = settings.seeds[0], settings.shown
    titles = {"latent": "decoded latent", "lifted": "lifted, untrained", "trained": "trained"}
    columns: dict[str, Sequence[Image.Image]] = {"real": to_pictures(real[:n])}
    columns |= {title: to_pictures(samples[model, seed][:n]) for model, title in titles.items()}
    sheet = side_by_side(columns, prompts.captions()[:n], scale=2)
    context.tracker.log_picture("before_and_after", sheet)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    storage.write_bytes(context.file("before_and_after.png"), buffer.getvalue())


STEP = Step(
    "evaluate",
    EvaluateSettings,
    build,
    inputs=INPUTS,
    check=check,
    check_inputs=check_inputs,
    contents=("base",),
)
