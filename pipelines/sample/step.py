"""Sample step: images from prompts and seeds, each a PNG with its metadata, their captions, and an image grid.

What loads diffusers is imported where it is used: a cached artifact does not need it.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from asymflow.hub import is_repository, resolve_commit
from pipelines.core import storage
from pipelines.core.base_models import check_base, check_padding, check_unquantized, read_patch_size
from pipelines.core.config import ConfigError, read_json_setting
from pipelines.core.map_items import map_items
from pipelines.core.step import Context, Step
from pipelines.sample.config import SampleSettings
from pipelines.sample.metadata import encode_with_metadata
from pipelines.sample.parameters import SamplingParameters
from pipelines.sample.safety import SafetyFilter, check_safety
from pipelines.viz.image_grid import side_by_side, thumbnail, to_pil_images

if TYPE_CHECKING:
    from pipelines.sample.base_sampler import BaseSampler
    from pipelines.sample.sampler import ImageSampler, PairSampler

CAPTIONS = "metadata.jsonl"
"""File beside a model's images with the prompts of those that were not flagged"""


def check(settings: SampleSettings) -> None:
    """Check models, image size and safety classifier before Ray starts. Raises ConfigError."""
    check_model(settings.base, settings.adapter, settings.latent)
    if models_of(settings) == ("latent",):
        check_padding(settings.base, settings.text_padding)
    if side := read_patch_size(settings.base):
        settings.check_size(side)
    check_safety(settings.safety)
    if settings.hires.upscale > 1:
        check_hires(settings)


def check_hires(settings: SampleSettings) -> None:
    """Check that a model can be sampled in two stages. Raises ConfigError."""
    from asymflow.models.latent import family_of

    given = f"hires.upscale={settings.hires.upscale:g}"
    if models_of(settings) == ("latent",):
        raise ConfigError(
            f"{given}: the latent model is sampled in one stage only; give an adapter, or leave out hires"
        )
    if settings.adapter and not family_of(settings.base).pixel_pipeline:
        raise ConfigError(f"{given}, base={settings.base!r}: this family is sampled in one stage only; leave out hires")


def check_model(base: str, adapter: str, latent: bool) -> None:
    """Check that a model can be sampled from, as far as possible without loading it. Raises ConfigError."""
    if adapter:
        check_base(base, ("transformer",), images=latent, text=True)
        if not (adapter.startswith("s3://") or Path(adapter).is_dir() or is_repository(adapter)):
            raise ConfigError(f"adapter={adapter!r}: no such folder; a finetune writes one, and jobs/export.py does")
        check_hub(adapter)
        return
    from asymflow.diffusers_pipeline import PIPELINES

    index = Path(base) / "model_index.json"
    kind = read_json_setting(index, f"base={base!r}").get("_class_name") if index.is_file() else None
    if kind in PIPELINES:
        check_unquantized(
            base,
            "jobs sample from format=merged, or from a GGUF base with its adapter; this folder is for diffusers on an "
            "accelerator (docs/export.md)",
        )
        if latent:
            raise ConfigError("latent=True: a merged model has no latent base; give base and adapter")
        return
    if not latent:
        raise ConfigError(
            f"adapter: missing, and base={base!r} is not a pixel model merged by jobs/export.py; give an adapter, or "
            "latent=true to sample the base alone"
        )
    check_base(base, ("transformer",), images=True, text=True)


def check_hub(adapter: str) -> None:
    """Check that an adapter is a folder, on S3, or a repository that the hub or its cache has. Raises ConfigError.

    A relative path of another directory looks like a repository's name.
    """
    if adapter.startswith("s3://") or Path(adapter).is_dir():
        return
    try:
        resolve_commit(adapter)
    except ValueError as error:
        where = f"no such folder in {Path.cwd()}, and as a repository"
        raise ConfigError(f"adapter={adapter!r}: {where}: {error}") from None


class SampleWorker:
    """Samples the images of one item, the range [start, stop) of all pairs of prompt and seed; see `map_items`."""

    def __init__(self, settings: SampleSettings, folder: str):
        self.settings, self.folder = settings, folder
        self.sampler = open_model(settings)
        self.filter = SafetyFilter(settings.safety, settings.resources.device)
        self.stages = hires_of(settings)

    def __call__(self, item: str) -> dict[str, Any]:
        """Sample, filter and write the images of an item. Returns their rows of `samples.json`."""
        start, stop = json.loads(item)
        pairs = self.settings.pairs()[start:stop]
        prompts, seeds = [self.settings.prompts[place] for place, _ in pairs], [seed for _, seed in pairs]
        parameters = self.settings.resolve(self.sampler.defaults)
        rows: list[dict[str, Any]] = []
        for model in models_of(self.settings):
            images = self._sampler_of(model)(prompts, seeds, parameters)
            filtered, flagged = self.filter(to_pil_images(images))
            for (place, seed), image, is_flagged in zip(pairs, filtered, flagged, strict=True):
                row = {
                    "file": file_of(model, place, seed),
                    "model": model,
                    "flagged": is_flagged,
                    **metadata_of(self.sampler, self.settings.prompts[place], seed, parameters),
                    **(self.stages if model == "pixel" else {}),
                }
                png = encode_with_metadata(image, row, self.settings.provenance.mark)
                storage.write_bytes(storage.join(self.folder, row["file"]), png)
                rows.append(row)
        return {"rows": rows}

    def _sampler_of(self, model: str) -> "ImageSampler":
        if model == "latent" or not self.stages:
            return getattr(self.sampler, model)
        from pipelines.sample.pixel_samplers import HiresSampler

        pipeline: Any = getattr(self.sampler, "pipeline")  # noqa: B009 (`check` allows no other sampler)
        return HiresSampler(pipeline, self.settings.hires, self.stages["hires"]["shift_law"])


def hires_of(settings: SampleSettings) -> dict[str, Any]:
    """Return the metadata of sampling in two stages; empty for one stage."""
    if settings.hires.upscale == 1:
        return {}
    law = None if settings.shift else settings.shift_law
    return {"hires": {**settings.hires.model_dump(), "shift_law": law}}


def open_model(settings: SampleSettings) -> "PairSampler | BaseSampler":
    """Return the sampler of the settings' models."""
    if models_of(settings) == ("latent",):
        from pipelines.sample.base_sampler import BaseSampler

        return BaseSampler(settings.base, settings.text_padding, settings.resources.device)
    from pipelines.sample.sampler import open_sampler

    return open_sampler(settings.base, settings.adapter, settings.resources.device)


def metadata_of(
    sampler: "PairSampler | BaseSampler", prompt: str, seed: int, parameters: SamplingParameters
) -> dict[str, Any]:
    """Return the metadata with which an image can be sampled again."""
    source = {"base": Path(sampler.base).name, "adapter_sha256": sampler.adapter_sha256}
    return {"prompt": prompt, "seed": seed, **source, **asdict(parameters)}


def models_of(settings: SampleSettings) -> tuple[str, ...]:
    """Return the models to sample from."""
    if not settings.latent:
        return ("pixel",)
    return ("latent", "pixel") if settings.adapter else ("latent",)


def file_of(model: str, place: int, seed: int) -> str:
    """Return the file of an image."""
    return f"{model}/{place:05}-{seed}.png"


def build(settings: SampleSettings, context: Context) -> dict[str, float]:
    """Sample all images with a pool of actors, and write `samples.json` and the image grid."""
    count, size = len(settings.pairs()), settings.resources.batch
    spans = [(start, min(start + size, count)) for start in range(0, count, size)]
    items = {f"{start}-{stop}": json.dumps([start, stop]) for start, stop in spans}
    make_worker = partial(SampleWorker, with_absolute_paths(settings), context.folder)
    summaries = map_items(items, make_worker, context.folder, settings.resources)
    rows = [row for summary in summaries for row in summary["rows"]]
    storage.write_bytes(context.file("samples.json"), json.dumps(rows, indent=1, ensure_ascii=False).encode())
    for model in models_of(settings):
        own = [row for row in rows if row["model"] == model and not row["flagged"]]
        storage.write_bytes(context.file(f"{model}/{CAPTIONS}"), caption_rows(own))
    image_grid = image_grid_of(settings, context)
    buffer = io.BytesIO()
    image_grid.save(buffer, "PNG")
    storage.write_bytes(context.file("samples.png"), buffer.getvalue())
    context.tracker.log_image("samples", image_grid)
    return {"pictures": len(rows), "flagged": sum(row["flagged"] for row in rows)}


def caption_rows(rows: Sequence[dict[str, Any]]) -> bytes:
    """Return JSON lines of images and their prompts, with which the curate step reads a model's folder."""
    named = ({"file_name": Path(row["file"]).name, "caption": row["prompt"]} for row in rows)
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in named).encode()


def with_absolute_paths(settings: SampleSettings) -> SampleSettings:
    """Return the settings with absolute paths: workers have other working directories.

    The name of a repository stays as it is.
    """
    folders = {"base": settings.base, "adapter": settings.adapter}
    return settings.model_copy(update={k: storage.absolute(v) for k, v in folders.items() if Path(v).is_dir() and v})


def image_grid_of(settings: SampleSettings, context: Context) -> Image.Image:
    """Return an image grid of the first prompts, one per row, with their seeds side by side."""
    places = list(islice(range(len(settings.prompts)), settings.shown))
    columns: dict[str, Sequence[Image.Image]] = {
        f"{model}, seed {seed}": [_read(context, file_of(model, place, seed)) for place in places]
        for seed in settings.seeds
        for model in models_of(settings)
    }
    return side_by_side(columns, [settings.prompts[place] for place in places], scale=1)


def _read(context: Context, name: str) -> Image.Image:
    with Image.open(io.BytesIO(storage.read_bytes(context.file(name)))) as image:
        return thumbnail(image.convert("RGB"))


STEP = Step(
    "sample",
    SampleSettings,
    build,
    check=check,
    contents=("base", "adapter", "safety.classifier"),
    repositories=("adapter",),
    hash_overrides=lambda settings, inputs: {"resources.precision": settings.resources.precision},
)
