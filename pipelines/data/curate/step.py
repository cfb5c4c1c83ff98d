"""Curate step: filter img2dataset shards into files of one image size each, and list rejected rows with a reason.

There are two passes. The first filters, resizes and stages each shard. The second removes duplicates over the whole
crawl and writes the staged rows to files of even length.
"""

import json
from collections import Counter
from functools import partial

import ray

from pipelines.core import storage
from pipelines.core.config import ConfigError
from pipelines.core.map_items import map_items
from pipelines.core.step import Context, Step
from pipelines.data.curate.caption_table import check_caption_tables, load_caption_table
from pipelines.data.curate.compact import FileWriter, plan_files
from pipelines.data.curate.config import CurateSettings
from pipelines.data.curate.parquet_reader import check_columns
from pipelines.data.curate.report import Histograms, report_figure
from pipelines.data.curate.shard import STAGED, ShardCurator
from pipelines.data.curate.sources import is_table, list_classes, list_shards
from pipelines.data.datasets import read_rows
from pipelines.data.images import decode_image
from pipelines.viz.image_grid import grid_of


def check(settings: CurateSettings) -> None:
    """Check buckets and labels, and that the source has shards with the needed columns. Raises ConfigError."""
    for width, height in settings.buckets:
        if width % 16 or height % 16 or width < 16 or height < 16:
            raise ConfigError(f"buckets: {width}x{height}: width and height must be multiples of 16")
        if settings.crop == "adm" and width != height:
            raise ConfigError(f"crop='adm': makes squares, but buckets has {width}x{height}")
    if settings.labels == "folder" and settings.columns.global_key:
        raise ConfigError(
            f"columns.global_key={settings.columns.global_key!r}: labels=folder has no columns; leave it empty"
        )
    if bool(settings.captions) != bool(settings.columns.caption_key):
        raise ConfigError(
            f"columns.caption_key={settings.columns.caption_key!r}, captions="
            f"{settings.captions and settings.captions.source!r}: one needs the other"
        )
    if settings.labels == "folder":
        if settings.captions:
            raise ConfigError("captions: labels=folder has no columns to find them by; remove them")
        list_classes(settings.source)
        return
    if settings.captions:
        check_caption_tables(settings.captions)
    if (settings.labels == "column") != bool(settings.columns.label):
        raise ConfigError(f"labels={settings.labels!r}, columns.label={settings.columns.label!r}: one needs the other")
    shards = list(list_shards(settings.source).values())
    try:
        with storage.open_file(shards[0]) as file:
            file.raw.read(1)
    except (FileNotFoundError, PermissionError) as error:
        raise ConfigError(f"source={settings.source!r}: {shards[0]} cannot be read: {error.strerror}") from None
    tables = [shard for shard in shards if is_table(shard)]
    if tables:
        check_columns(tables[0], settings.columns)


def build(settings: CurateSettings, context: Context) -> dict[str, float]:
    """Curate all shards of the source; see `pipelines.core.step.Step`."""
    by_class = settings.labels == "folder"
    shards = list_classes(settings.source) if by_class else list_shards(settings.source)
    reasons: Counter[str] = Counter()
    histograms = Histograms()
    if by_class:
        storage.write_bytes(context.file("classes.json"), json.dumps(list(shards)).encode())
    labels = {name: label if by_class else None for label, name in enumerate(shards)}
    items = {name: json.dumps([name, shard, labels[name]]) for name, shard in shards.items()}
    captions = ray.put(load_caption_table(settings.captions)) if settings.captions else None
    read = partial(_make_curator, settings, context.folder, captions)
    for summary in map_items(items, read, context.folder, settings.resources, stage="read"):
        reasons.update(summary["rejected"])
        histograms.merge(summary["histograms"])
    plan = plan_files(context.folder, list(shards), settings.near_duplicate_bits, settings.rows_per_file)
    reasons.update(plan["dropped"])
    buckets, splits = count_kept(plan["kept"])
    if not splits["train"] or not splits["held_out"]:
        raise ConfigError(
            f"source={settings.source!r}: curation kept {dict(splits)} images, too few to train and test on; rejected: "
            f"{dict(reasons.most_common())}"
        )
    items = {name: json.dumps([name, segments]) for name, segments in plan["files"].items()}
    write = partial(FileWriter, context.folder)
    for _ in map_items(items, write, context.folder, settings.resources, stage="write"):
        pass
    for folder in ("index", *plan["kept"]):  # the plan is kept, so that a rerun does not need these
        storage.delete_folder(context.file(STAGED, folder))
    report(context, reasons, buckets, histograms, next(name for name in plan["files"] if name.startswith("train/")))
    kept = {f"kept_{split}": float(n) for split, n in splits.items()}
    return kept | {"rejected": sum(reasons.values()), "shards": len(shards), "files": len(plan["files"])}


def _make_curator(settings: CurateSettings, folder: str, captions: ray.ObjectRef | None) -> ShardCurator:
    """Return the worker of the first pass; all workers of a node share one copy of the captions."""
    return ShardCurator(settings, folder, ray.get(captions) if captions else None)


def count_kept(targets: dict[str, int]) -> tuple[Counter[str], Counter[str]]:
    """Sum the counts of rows per SPLIT/SIZE to counts per size and per split."""
    buckets: Counter[str] = Counter()
    splits: Counter[str] = Counter({"train": 0, "held_out": 0})
    for target, rows in targets.items():
        split, _, bucket = target.partition("/")
        buckets[bucket] += rows
        splits[split] += rows
    return buckets, splits


def report(
    context: Context, reasons: Counter[str], buckets: Counter[str], histograms: Histograms, shown: str
) -> None:
    """Write `report.json`, and log tables, histograms and the first images of the file `shown`."""
    counts = {"rejected": reasons, "kept": buckets, "histograms": histograms.counts}
    storage.write_bytes(context.file("report.json"), json.dumps(counts, indent=1).encode())
    for name, rows in (("rejected", reasons), ("kept", buckets)):
        context.tracker.log_table(name, {"what": list(rows), "rows": list(rows.values())})
    context.tracker.log_figure("curation", report_figure(histograms, reasons, buckets))
    first = next(read_rows(context.file(f"{shown}.parquet"), ["image"]))
    context.tracker.log_picture("curated", grid_of([decode_image(data) for data in first["image"]], columns=8))


STEP = Step(
    "curate", CurateSettings, build, check=check, contents=("source", "captions.source", "captions.keys"),
    data=("source",),
)  # fmt: skip
