"""A self-contained HTML page that compares evaluations: tables with intervals, image grids and protocols."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from jinja2 import Environment
from PIL import Image

from pipelines.core import storage
from pipelines.core.artifacts import Artifact, load_artifact
from pipelines.core.config import ConfigError
from pipelines.evaluate.show import PROTOCOLS, TABLE
from pipelines.experiments.timeline import FILE, Entry, read_timeline

Row = Mapping[str, Any]

# Quoted from the paper's Tables 3 and 4; nothing of it was measured here.
TABLE_3 = (
    ("HPSv3", "HPSv2.1", "VQA", "CLIP", "FID", "pFID"),
    {
        "FLUX.2 klein Base + latent finetune": (10.70, 0.290, 0.936, 0.276, 15.0, 18.8),
        "FLUX.2 klein Base + DDT finetune": (10.33, 0.291, 0.922, 0.273, 20.4, 26.0),
        "AsymFLUX.2 klein (standard FM)": (12.03, 0.293, 0.922, 0.277, 20.2, 25.4),
        "AsymFLUX.2 klein (variance reduction)": (12.99, 0.296, 0.925, 0.280, 18.5, 27.8),
        "+ perceptual correction": (13.06, 0.297, 0.925, 0.278, 19.1, 22.5),
    },
)
TABLE_4 = (
    ("HPSv3", "DPG", "GenEval"),
    {
        "SDXL": (8.20, 74.7, 0.55),
        "PixArt-Σ": (9.37, 80.5, 0.54),
        "Hunyuan-DiT": (8.19, 78.9, 0.63),
        "FLUX.1 dev": (10.43, 84.0, 0.67),
        "Qwen-Image": (9.52, 87.8, 0.86),
        "FLUX.2 klein Base": (9.50, 85.2, 0.80),
        "PixelDiT-T2I (pixel)": (8.95, 83.5, 0.74),
        "AsymFLUX.2 klein (pixel)": (10.66, 86.8, 0.82),
    },
)


@dataclass(frozen=True)
class Evaluation:
    """Data of one evaluate artifact."""

    label: str
    artifact: Artifact
    rows: Sequence[Row]
    protocols: Mapping[str, Any]

    @property
    def suite(self) -> str:
        """Return the name of the suite."""
        return self.artifact.manifest["config"]["suite"]

    @property
    def models(self) -> list[str]:
        """Return the evaluated models."""
        return list(dict.fromkeys(row["model"] for row in self.rows))

    def image_grids(self) -> dict[str, str]:
        """Return {name: data URI} of its image grids."""
        names = sorted(name for name in self.artifact.manifest["files"] if name.endswith(".png"))
        names.sort(key=lambda name: name != "samples.png")
        return {name.removesuffix(".png"): _data_uri(self.artifact.file(name)) for name in names}


def read_evaluation(label: str, uri: str, tracking_uri: str = "") -> Evaluation:
    """Read an evaluation.

    Args:
        label: name of the evaluation on the page.
        uri: an evaluate artifact, or the ID of its MLflow run.
        tracking_uri: MLflow server or database of the run; empty: MLFLOW_TRACKING_URI.

    Raises:
        ConfigError: there is no such artifact or run.
    """
    artifact = load_artifact(_folder_of(uri, tracking_uri), "evaluate")
    rows = json.loads(storage.read_bytes(artifact.file(TABLE)))
    protocols = json.loads(storage.read_bytes(artifact.file(PROTOCOLS)))
    return Evaluation(label, artifact, rows, protocols)


def read_workflow(uri: str, tracking_uri: str = "") -> list[Entry]:
    """Read the timeline of a workflow.

    Args:
        uri: folder of the workflow, or the ID of its MLflow run.
        tracking_uri: see `read_evaluation`.

    Raises:
        ConfigError: there is no such workflow, or none of its runs has ended.
    """
    folder = _folder_of(uri, tracking_uri)
    if not (timeline := read_timeline(folder)):
        raise ConfigError(f"workflow={uri!r}: {folder} has no {FILE}; a workflow writes it when it ends")
    return timeline


def _folder_of(uri: str, tracking_uri: str) -> str:
    """Return a folder as it is, and that of an MLflow run."""
    is_run = len(uri) == 32 and not {*uri} - {*"0123456789abcdef"}
    return _artifact_of_run(uri, tracking_uri) if is_run else uri


def _artifact_of_run(run_id: str, tracking_uri: str) -> str:
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    from pipelines.core.preflight import short_timeouts

    try:
        with short_timeouts():
            tags = MlflowClient(tracking_uri or None).get_run(run_id).data.tags
    except MlflowException as error:
        raise ConfigError(f"{run_id}: {str(error).splitlines()[0]} (which MLflow? set tracking_uri)") from None
    if "artifact" not in tags:
        raise ConfigError(f"{run_id}: the run made no artifact: it did not finish, or is not of a step")
    return tags["artifact"]


@dataclass
class _Cell:
    value: float
    low: float | None
    high: float | None
    fingerprint: str
    best: bool = False
    left: float = 0.0
    """Position of the interval's bar, in percent of the row's range"""
    width: float = 0.0


@dataclass
class _Line:
    name: str
    cells: list[_Cell | None] = field(default_factory=list)
    comparable: bool = True


def compare(evaluations: Sequence[Evaluation]) -> dict[str, tuple[list[str], list[_Line], list[_Line]]]:
    """Return {suite: (columns, lines of overall scores, lines of categories)}.

    A line is a metric, a column a model of an evaluation.
    """
    suites: dict[str, tuple[list[str], list[_Line], list[_Line]]] = {}
    for suite in dict.fromkeys(e.suite for e in evaluations):
        own = [(e, model) for e in evaluations if e.suite == suite for model in e.models]
        keys = dict.fromkeys((row["metric"], row["category"]) for e, _ in own for row in e.rows)
        lines = [(key, _line(key, own)) for key in keys]
        whole = [line for (_, category), line in lines if not category]
        parts = [line for (_, category), line in lines if category]
        columns = [f"{e.label} {model}" if len(e.models) > 1 else e.label for e, model in own]
        suites[suite] = (columns, whole, parts)
    return suites


def _line(key: tuple[str, str], own: Sequence[tuple[Evaluation, str]]) -> _Line:
    line = _Line(" / ".join(filter(None, key)))
    for evaluation, model in own:
        found = [r for r in evaluation.rows if (r["metric"], r["category"]) == key and r["model"] == model]
        fields = ("value", "low", "high", "fingerprint")
        line.cells.append(_Cell(*(found[0][name] for name in fields)) if found else None)
    cells = [cell for cell in line.cells if cell]
    line.comparable = len({cell.fingerprint for cell in cells}) == 1
    better = next(r["better"] for e, _ in own for r in e.rows if (r["metric"], r["category"]) == key)
    if line.comparable and len(cells) > 1 and better:
        pick = min if better == "low" else max
        pick(cells, key=lambda cell: cell.value).best = True
    ends = [v for c in cells for v in (c.value, c.low, c.high) if v is not None]
    start, span = min(ends), max(ends) - min(ends)
    for cell in cells:
        low = cell.value if cell.low is None else cell.low
        high = cell.value if cell.high is None else cell.high
        if span:
            cell.left, cell.width = 100 * (low - start) / span, 100 * (high - low) / span
    return line


def render(evaluations: Sequence[Evaluation], timeline: Sequence[Entry] = ()) -> str:
    """Return the page's HTML, which refers to no other files.

    Args:
        evaluations: the evaluations to compare.
        timeline: the steps of the workflow that made them; empty for none.
    """
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("pipelines.experiments").joinpath("report.html.jinja").read_text("utf-8"))
    return template.render(
        evaluations=evaluations, suites=compare(evaluations), bars=bars_of(timeline),
        quoted={"Table 3": TABLE_3, "Table 4": TABLE_4},
        pretty=lambda value: json.dumps(value, indent=1, ensure_ascii=False),
    )  # fmt: skip


@dataclass(frozen=True)
class _Bar:
    entry: Entry
    left: float
    """Start, in percent of the timeline"""
    width: float


def bars_of(timeline: Sequence[Entry]) -> list[_Bar]:
    """Return each step's bar on the time axis; steps without times have none (width 0)."""
    spans = [(entry.started, entry.started + entry.seconds) for entry in timeline if entry.started is not None]
    begin, end = min((s for s, _ in spans), default=0.0), max((e for _, e in spans), default=0.0)
    scale = 100 / (end - begin) if end > begin else 0.0
    return [
        _Bar(entry, 0.0, 0.0) if entry.started is None
        else _Bar(entry, scale * (entry.started - begin), scale * entry.seconds)
        for entry in timeline
    ]  # fmt: skip


def _data_uri(uri: str) -> str:
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(storage.read_bytes(uri))) as image:
        image.convert("RGB").save(buffer, "WEBP", quality=85)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
