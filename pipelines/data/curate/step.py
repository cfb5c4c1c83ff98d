"""Curate step: filter the images of a source into files of one image size, and list rejected rows with a reason.

There are two passes. The first filters, resizes and stages each shard, or list of image files. The second removes
duplicates over the whole source and writes the staged rows to files of even length.
"""

import json
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import ray

from pipelines.core import storage
from pipelines.core.artifacts import Artifact
from pipelines.core.config import ConfigError
from pipelines.core.map_items import map_items
from pipelines.core.step import Context, Step
from pipelines.data.curate.caption_table import check_caption_tables, load_caption_table
from pipelines.data.curate.compact import FileWriter, plan_files
from pipelines.data.curate.config import CurateSettings
from pipelines.data.curate.filters import Filters
from pipelines.data.curate.image_lists import list_entries, write_lists
from pipelines.data.curate.report import Histograms, report_figure
from pipelines.data.curate.shard import STAGED, ShardCurator
from pipelines.data.curate.source_files import split_address
from pipelines.data.curate.sources import Source, find_source, list_classes
from pipelines.data.datasets import has_references, read_rows
from pipelines.data.images import decode_image
from pipelines.viz.image_grid import grid_of

LISTS = "lists"
_listed: list[tuple[CurateSettings, Source]] = []
"""Settings of the present run and what their source holds: its ID, check and work share one listing"""


def check(settings: CurateSettings) -> None:
    """Check buckets and labels, and that the source has images, with captions if needed. Raises ConfigError."""
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
        if settings.columns.references:
            raise ConfigError("columns.references: labels=folder has no edits; leave it empty")
        list_classes(settings.source)
        return
    if settings.captions:
        check_caption_tables(settings.captions)
    if (settings.labels == "column") != bool(settings.columns.label):
        raise ConfigError(f"labels={settings.labels!r}, columns.label={settings.columns.label!r}: one needs the other")
    try:
        source = _list_source(settings)
        read_first_file(source)
        check_content(settings, source)
    except (FileNotFoundError, PermissionError) as error:
        raise ConfigError(f"source={settings.source!r}: {error.filename} cannot be read: {error.strerror}") from None


def _list_source(settings: CurateSettings, anew: bool = False) -> Source:
    """Return what the source holds, unless `anew` as it was listed for these very settings. Raises as `find_source`."""
    if anew or not _listed or _listed[0][0] is not settings:
        _listed[:] = [(settings, find_source(settings.source, settings.columns))]
    return _listed[0][1]


def read_first_file(source: Source) -> None:
    """Read a byte of the first shard or image, since a gated data set of the hub can be listed without access to it."""
    addresses = [*source.shards.values(), *(file.address for file in source.images if not file.problem)]
    for uri, _ in map(split_address, addresses[:1]):
        with storage.open_file(uri) as file:
            file.raw.read(1)


def check_content(settings: CurateSettings, source: Source) -> None:
    """Raise ConfigError if a metadata file cannot be read, or no image has a caption or reference that is needed."""
    images = [entry for entry in list_entries(source, settings.columns) if not entry.problem]
    has_captions = bool(settings.captions) or source.has_captions or any(entry.has_caption for entry in images)
    if settings.filters.captions and not has_captions and (images or source.shards):
        raise ConfigError(
            f"source={settings.source!r}: no image has a caption; write them to NAME.txt beside NAME.jpg, or to "
            "metadata.csv (file_name,text); or keep all images with filters.captions=false and run the caption step"
        )

    if settings.columns.references and not (source.has_references or any(entry.references for entry in images)):
        raise _no_references(settings, "no image has one")


def _no_references(settings: CurateSettings, found: str) -> ConfigError:
    names = ", ".join(settings.columns.references)
    return ConfigError(
        f"columns.references=[{names}]: {found}; name the columns of their paths or bytes, or the endings of their "
        f"names (NAME.{settings.columns.references[0]}.png beside NAME.png), or leave it empty"
    )


def filters_of(settings: CurateSettings, source: Source) -> Filters:
    """Return the filters of a source: those of one's own images have only the thresholds that are given."""
    return settings.filters if source.is_crawl else settings.filters.for_own_images()


def list_items(settings: CurateSettings, source: Source, folder: str) -> dict[str, str]:
    """Return the items of the first pass, {name: address}: shards, and lists of images written to a folder."""
    return source.shards | write_lists(source, settings.columns, folder)


def build(settings: CurateSettings, context: Context) -> dict[str, float]:
    """Curate all images of the source; see `pipelines.core.step.Step`."""
    by_class = settings.labels == "folder"
    if by_class:
        places = list_classes(settings.source)
        storage.write_bytes(context.file("classes.json"), json.dumps(list(places)).encode())
    else:
        source = _list_source(settings)
        settings = settings.model_copy(update={"filters": filters_of(settings, source)})
        places = list_items(settings, source, context.file(STAGED, LISTS))
        _listed.clear()
    reasons: Counter[str] = Counter()
    histograms = Histograms()
    labels = {name: label if by_class else None for label, name in enumerate(places)}
    items = {name: json.dumps([name, place, labels[name]]) for name, place in places.items()}
    captions = ray.put(load_caption_table(settings.captions)) if settings.captions else None
    read = partial(_make_curator, settings, context.folder, captions)
    for summary in map_items(items, read, context.folder, settings.resources, stage="read"):
        reasons.update(summary["rejected"])
        histograms.merge(summary["histograms"])
    plan = plan_files(context.folder, list(places), settings.near_duplicate_bits, settings.rows_per_file)
    reasons.update(plan["dropped"])
    buckets, splits = count_kept(plan["kept"])
    if not splits["train"]:
        raise ConfigError(
            f"source={settings.source!r}: curation kept {dict(splits)} images, none to train on; rejected: "
            f"{dict(reasons.most_common())}"
        )
    edits = sum(rows for target, rows in plan["kept"].items() if has_references(target))
    if settings.columns.references and not edits:
        raise _no_references(settings, f"curation kept no image with one; rejected: {dict(reasons.most_common())}")
    items = {name: json.dumps([name, segments]) for name, segments in plan["files"].items()}
    write = partial(FileWriter, context.folder, settings.encoding if settings.horizontal_flips else None)
    for _ in map_items(items, write, context.folder, settings.resources, stage="write"):
        pass
    for folder in ("index", LISTS, *plan["kept"]):  # the plan is kept, so that a rerun does not need these
        storage.delete_folder(context.file(STAGED, folder))
    report(context, reasons, buckets, histograms, next(name for name in plan["files"] if name.startswith("train/")))
    kept = {f"kept_{split}": float(n) for split, n in splits.items()}
    if settings.horizontal_flips:
        kept["flipped"] = kept["kept_train"]
    if settings.columns.references:
        kept["kept_edits"] = float(edits)
    return kept | {"rejected": sum(reasons.values()), "shards": len(places), "files": len(plan["files"])}


def hash_overrides(settings: CurateSettings, inputs: Mapping[str, Artifact]) -> dict[str, Any]:
    """Return the filters, if those that apply are others than the given ones; see `pipelines.core.step.Step`."""
    if settings.labels == "folder":
        return {}
    with suppress(ConfigError, FileNotFoundError, PermissionError):  # `check` reports it
        source = _list_source(settings, anew=True)  # a run starts here
        filters = filters_of(settings, source)
        return {} if filters == settings.filters else {"filters": filters.model_dump(mode="json")}
    return {}


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


def report(context: Context, reasons: Counter[str], buckets: Counter[str], histograms: Histograms, shown: str) -> None:
    """Write `report.json`, and log tables, histograms and the first images of the file `shown`."""
    counts = {"rejected": reasons, "kept": buckets, "histograms": histograms.counts}
    storage.write_bytes(context.file("report.json"), json.dumps(counts, indent=1).encode())
    for name, rows in (("rejected", reasons), ("kept", buckets)):
        context.tracker.log_table(name, {"what": list(rows), "rows": list(rows.values())})
    context.tracker.log_figure("curation", report_figure(histograms, reasons, buckets))
    first = next(read_rows(context.file(f"{shown}.parquet"), ["image"]))
    context.tracker.log_image("curated", grid_of([decode_image(data) for data in first["image"]], columns=8))


STEP = Step(
    "curate", CurateSettings, build, check=check, contents=("source", "captions.source", "captions.keys"),
    hash_overrides=hash_overrides, data=("source",),
)  # fmt: skip
