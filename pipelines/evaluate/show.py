"""Report of an evaluation: table, scores per image, image grids, and MLflow."""

import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from asymflow.metrics.protocol import fingerprint
from pipelines.core import storage
from pipelines.core.step import Context
from pipelines.core.text_table import format_table
from pipelines.data.images import decode_image
from pipelines.evaluate.config import EvaluateSettings
from pipelines.evaluate.image_sets import REAL
from pipelines.evaluate.measures import Row, ScoredImages
from pipelines.evaluate.prompts import Generation
from pipelines.evaluate.suites import SUITES
from pipelines.viz.image_grid import join_horizontally, side_by_side, thumbnail

SCORES, TABLE, PROTOCOLS = "scores.parquet", "table.json", "protocols.json"
COLUMNS = ("model", "metric", "category", "value", "low", "high", "better", "prompts", "pictures", "fingerprint")


def group_of(settings: EvaluateSettings) -> str:
    """Return the prefix of the metrics' names in MLflow."""
    return f"eval/{settings.suite}"


def report(
    settings: EvaluateSettings,
    context: Context,
    generations: Sequence[Generation],
    images: Mapping[str, ScoredImages],
    rows: Sequence[Row],
) -> None:
    """Write all results into the artifact, and log them to MLflow."""
    tracker = context.tracker
    protocols = {fingerprint(row["protocol"]): row["protocol"] for row in rows}
    table = [{**row, "fingerprint": fingerprint(row["protocol"])} for row in rows]
    table = [{name: row[name] for name in COLUMNS} for row in table]
    made = {label: {"id": found.set.id, **found.set.protocol} for label, found in images.items()}
    _write_json(context.file(TABLE), table)
    _write_json(context.file(PROTOCOLS), {"numbers": protocols, "pictures": made})
    tracker.log_table("table", {name: [row[name] for row in table] for name in COLUMNS})
    own = {label: found for label, found in images.items() if label != REAL}
    storage.write_file(context.file(SCORES), lambda local: pq.write_table(_scores(generations, own), local))
    for name in (SCORES, PROTOCOLS):
        tracker.log_file(context.file(name))
    for name, image_grid in _image_grids(settings, generations, images, own):
        buffer = io.BytesIO()
        image_grid.save(buffer, "PNG")
        storage.write_bytes(context.file(f"{name}.png"), buffer.getvalue())
        tracker.log_image(name, image_grid)
    group = group_of(settings)
    by_category = {
        f"{group}/{row['model']}/{row['metric']}/{row['category']}": row["value"] for row in rows if row["category"]
    }
    tracker.log_metrics({re.sub(r"[^\w\-./ ]", "_", name): value for name, value in by_category.items()})


def _scores(generations: Sequence[Generation], own: Mapping[str, ScoredImages]) -> pa.Table:
    """Return a table with a row per image: its prompt, and its scores."""
    found: list[dict[str, Any]] = []
    for model, images in own.items():
        scored = {name: scores.rows() for name, scores in images.scores.items()}
        for i, generation in enumerate(generations):
            prompt = generation.prompt
            row = {
                "model": model, "index": generation.index, "prompt_id": prompt.id, "prompt": prompt.text,
                "category": prompt.category, "picture": images.set.files[generation.key],
            }  # fmt: skip
            for name, rows in scored.items():
                row |= {f"{name}/{column}": value for column, value in rows[i].items() if column != "key"}
            found.append(row)
    return pa.Table.from_pylist(found)


def _image_grids(
    settings: EvaluateSettings,
    generations: Sequence[Generation],
    images: Mapping[str, ScoredImages],
    own: Mapping[str, ScoredImages],
) -> Iterable[tuple[str, Image.Image]]:
    """Yield image grids by name: the first prompts for all models, then the best and worst images per scorer."""
    repeats = next((i for i, g in enumerate(generations) if g.prompt is not generations[0].prompt), len(generations))
    first = list(range(0, len(generations), repeats))[: settings.shown]
    paired = SUITES[settings.suite].read is None  # real image i belongs to prompt i; other reference images to none
    shown = [label for label in sorted(images, key=lambda label: label in own) if label in own or paired]
    indices = {label: first if label in own else range(len(first)) for label in shown}
    columns = {label: _read(images[label], indices[label]) for label in indices}
    yield "samples", side_by_side(columns, [generations[i].prompt.text for i in first], scale=1)
    for model, found in own.items():
        for name, scores in found.scores.items():
            rows = scores.rows()
            if "score" not in rows[0]:
                continue
            ranked = sorted(range(len(rows)), key=lambda i: -rows[i]["score"])
            count = min(settings.shown, -(-len(ranked) // 2))
            parts = []
            for title, picked in (("most", ranked[:count]), ("least", ranked[::-1][:count])):
                captions = [f"{rows[i]['score']:.4g}  {generations[i].prompt.text}" for i in picked]
                parts.append(side_by_side({f"{name}: {title}": _read(found, picked)}, captions, scale=1))
            yield f"{model}_{name}", join_horizontally(*parts)


def _read(images: ScoredImages, indices: Iterable[int]) -> list[Image.Image]:
    files = list(images.set.files.values())
    return [thumbnail(decode_image(storage.read_bytes(files[i]))) for i in indices]


def _write_json(uri: str, content: Any) -> None:
    storage.write_bytes(uri, json.dumps(content, indent=1, ensure_ascii=False).encode())


def table_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table for a terminal."""
    lines: list[Sequence[str]] = [("model", "metric", "category", "value", "interval", "pictures", "protocol")]
    for row in rows:
        interval = "" if row["low"] is None else f"[{row['low']:.4g}, {row['high']:.4g}]"
        value, count = f"{row['value']:.4g}", str(row["pictures"])
        lines.append((row["model"], row["metric"], row["category"], value, interval, count, row["fingerprint"]))
    return format_table(lines)
