"""Time to quality: steps and minutes of training after which a pixel model surpasses its latent base.

A model surpasses its base when it is nearer to real images, in evaluations of its checkpoints. These are ordinary
evaluations with artifacts and runs of their own: cached ones are reused.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from asymflow.adapters import CONFIG
from pipelines.core import storage
from pipelines.core.artifacts import Artifact, MissingArtifact, load_artifact
from pipelines.core.config import ConfigError, RunSettings, validate
from pipelines.core.provenance import read_run
from pipelines.core.step import run_step
from pipelines.core.tracking import tracking_uri
from pipelines.data.basis.step import load_subspace
from pipelines.evaluate.config import EvaluateSettings
from pipelines.evaluate.step import STEP, measures_of
from pipelines.experiments.config import TimeToQualitySettings
from pipelines.train.checkpoint import folder_of, list_checkpoints
from pipelines.train.ema import read_average
from pipelines.train.finetune.config import FinetuneSettings
from pipelines.train.finetune.export import FOLDER, export_adapter, image_size
from pipelines.viz.figures import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SECONDS = "train/speed/seconds_per_step"
"""The finetune's metric: excludes validation images and checkpoints"""
Row = dict[str, Any]


class StepsToQuality(NamedTuple):
    """Step of the first checkpoint below a limit, and of the first after which all are; None if there is none."""

    first: int | None
    lasting: int | None


def steps_to_quality(steps: Sequence[int], distances: Sequence[float], limit: float) -> StepsToQuality:
    """Return where the distances of checkpoints, in the order of their steps, fall below a limit."""
    below = [distance < limit for distance in distances]
    first = steps[below.index(True)] if any(below) else None
    lasting = None
    for step, passed in zip(reversed(steps), reversed(below), strict=True):
        if not passed:
            break
        lasting = step
    return StepsToQuality(first, lasting)


def training_minutes(finetuned: Artifact, run: RunSettings, steps: Sequence[int]) -> list[float | None]:
    """Return the minutes of training up to each step from the finetune's MLflow run; None if unknown."""
    uri, made_by = tracking_uri(run), read_run(finetuned.uri)
    try:
        history = MlflowClient(uri, uri).get_metric_history(made_by, SECONDS) if made_by else []
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        history = []  # the finetune used another server
    seconds = {metric.step: metric.value for metric in history}

    def until(step: int) -> float | None:
        known = [value for at, value in seconds.items() if at <= step]
        return step * sum(known) / len(known) / 60 if known else None  # steps without a metric are assumed average

    return [until(step) for step in steps]


def export_checkpoints(finetuned: Artifact, root: str) -> dict[int, str]:
    """Export the adapters of all checkpoints of a finetune, and of its end: {step: folder}."""
    settings = FinetuneSettings.model_validate(finetuned.manifest["config"])
    end = settings.optim.steps
    folders = {end: finetuned.file(FOLDER)}
    subspace = load_subspace(load_artifact(settings.basis, "basis"))
    size = image_size(load_artifact(settings.curated, "curate"))
    for step in (checkpoint.step for checkpoint in list_checkpoints(folder_of(finetuned.uri))):
        if step == end:
            continue
        folder = storage.join(root, "exports", finetuned.id, f"{step:08}")
        folders[step] = storage.join(folder, FOLDER)
        if not storage.exists(storage.join(folders[step], CONFIG)):  # written last
            export_adapter(settings, subspace, read_average(finetuned.uri, step).values, folder, size)
    return dict(sorted(folders.items()))


def evaluation_of(settings: TimeToQualitySettings, base: str, adapter: str) -> EvaluateSettings:
    """Return the settings of one checkpoint's evaluation, with the latent model. Raises ConfigError."""
    filled = {"base": base, **settings.evaluate, "run": settings.run.model_dump(), "adapter": adapter}
    return validate(EvaluateSettings, {**filled, "models": ["latent", "trained"]}, "evaluate")


def find_finetunes(settings: TimeToQualitySettings) -> dict[str, Artifact]:
    """Return the finetunes by label, after checking them and the metrics. Raises ConfigError."""
    found = {}
    for label, uri in settings.finetuned.items():
        try:
            found[label] = load_artifact(uri, "finetune")
        except MissingArtifact as error:
            raise ConfigError(f"finetuned.{label}: {error}") from None
        if (kind := found[label].manifest["config"]["model"]) != "asymflow":
            raise ConfigError(f"finetuned.{label}: has model={kind}; only model=asymflow can be compared")
        base = found[label].manifest["config"]["base"]
        evaluation = evaluation_of(settings, base, found[label].file(FOLDER))
        STEP.check(evaluation)
    names = [name for measure in measures_of(evaluation) if measure.better == "low" for name in measure.names]
    if unknown := [name for name in settings.metrics if name not in names]:
        raise ConfigError(f"metrics={unknown}: must be distances of the suite: {', '.join(names)}")
    return found


def run_time_to_quality(settings: TimeToQualitySettings) -> tuple[str, str, list[Row]]:
    """Evaluate the checkpoints of all finetunes. Returns the folder, the parent run's ID and the rows.

    Raises as a step does.
    """
    from pipelines.core.preflight import check_can_build, check_destinations
    from pipelines.core.tracking import open_artifact_run

    check_destinations(settings.run)
    finetunes = find_finetunes(settings)
    check_can_build(settings.run)
    identity = hashlib.sha256(settings.model_dump_json(exclude={"run"}).encode()).hexdigest()[:16]
    root = storage.absolute(settings.run.storage)
    folder = storage.join(root, "time_to_quality", identity)
    rows: list[Row] = []
    with open_artifact_run(folder, settings.step, settings.run, f"time to quality {identity[:6]}") as tracker:
        tracker.log_params(settings.model_dump(mode="json"))
        for label, finetuned in finetunes.items():
            found: dict[int, Mapping[str, float]] = {}
            for step, adapter in export_checkpoints(finetuned, root).items():
                evaluation = evaluation_of(settings, finetuned.manifest["config"]["base"], adapter)
                found[step] = run_step(STEP, evaluation, tracker.run_id).artifact.manifest["metrics"]
            minutes = training_minutes(finetuned, settings.run, list(found))
            rows += rows_of(label, settings.metrics, found, minutes)
            storage.write_bytes(storage.join(folder, "rows.json"), json.dumps(rows, indent=1).encode())
        tracker.log_figure("time_to_quality", quality_figure(rows))
    return folder, tracker.run_id, rows


def rows_of(
    label: str, metrics: Sequence[str], found: Mapping[int, Mapping[str, float]], minutes: Sequence[float | None]
) -> list[Row]:
    """Return a row per metric from the numbers of each checkpoint's evaluation."""
    steps, rows = list(found), []
    at = dict(zip(steps, minutes, strict=True))
    for metric in metrics:
        trained = [numbers[f"trained/{metric}"] for numbers in found.values()]
        latent = found[steps[-1]][f"latent/{metric}"]
        first, lasting = steps_to_quality(steps, trained, latent)
        rows.append({
            "finetune": label, "metric": metric, "latent": latent, "trained": trained, "steps": steps,
            "minutes": list(minutes), "first": first, "first_minutes": None if first is None else at[first],
            "lasting": lasting, "lasting_minutes": None if lasting is None else at[lasting],
        })  # fmt: skip
    return rows


def quality_table(rows: Sequence[Row]) -> list[Sequence[str]]:
    """Return the table for a terminal."""
    lines: list[Sequence[str]] = [
        ("finetune", "metric", "latent", "trained at the end", "passes at step", "minutes", "for good", "minutes")
    ]
    for row in rows:
        numbers = (row["first"], row["first_minutes"], row["lasting"], row["lasting_minutes"])
        first, first_minutes, lasting, lasting_minutes = ("-" if n is None else f"{n:.4g}" for n in numbers)
        lines.append((
            row["finetune"], row["metric"], f"{row['latent']:.4g}", f"{row['trained'][-1]:.4g}",
            first, first_minutes, lasting, lasting_minutes,
        ))  # fmt: skip
    return lines


def quality_figure(rows: Sequence[Row]) -> "Figure":
    """Plot each distance over training, one line per finetune, and the latent model's."""
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    timed = all(minute is not None for row in rows for minute in row["minutes"])
    figure = new_figure(figsize=(4 * len(metrics), 3.4), layout="constrained")
    for axes, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        for i, row in enumerate(row for row in rows if row["metric"] == metric):
            places = row["minutes"] if timed else row["steps"]
            axes.plot(places, row["trained"], "o-", color=f"C{i}", label=row["finetune"])
            axes.axhline(row["latent"], color=f"C{i}", linestyle=":")
        axes.set(xlabel="minutes of training" if timed else "optimizer step", title=metric, ylim=(0, None))
        axes.legend()
    return figure
