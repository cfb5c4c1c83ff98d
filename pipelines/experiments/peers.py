"""Finetunes of several kinds side by side, at equal optimizer steps and at equal training time, over several seeds.

Trainings and evaluations are ordinary steps: an experiment that is restarted or extended reuses their artifacts. The
time is that of the fastest training's steps, without validation images and checkpoints; every other training is
evaluated at its last kept checkpoint within that time.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.core import storage
from pipelines.core.artifacts import Artifact
from pipelines.core.config import ConfigError, validate
from pipelines.core.config_files import merge, read_config_file
from pipelines.core.step import find_inputs, run_step
from pipelines.evaluate.config import EvaluateSettings
from pipelines.evaluate.step import STEP as EVALUATE
from pipelines.evaluate.step import measures_of
from pipelines.experiments.config import PeersSettings
from pipelines.experiments.rank_report import difference, interval
from pipelines.experiments.time_to_quality import export_checkpoints, training_minutes
from pipelines.train.finetune.config import FinetuneSettings
from pipelines.train.finetune.export import FOLDER
from pipelines.train.finetune.step import STEP as FINETUNE

BASE = "base"
"""Label of the latent base's own row"""
STEPS, SECONDS = "steps", "seconds"
"""What is equal between the trainings of a row"""
Row = dict[str, Any]


def training_of(settings: PeersSettings, label: str, seed: int) -> FinetuneSettings:
    """Return the training of a method and seed. Raises ConfigError."""
    method = settings.methods[label]
    tree = read_config_file(method.config, FINETUNE.name)
    tree = merge(merge(tree, settings.changes), method.changes)
    return validate(FinetuneSettings, {**tree, "run": settings.run.model_dump(), "seed": seed}, f"methods.{label}")


def evaluation_of(
    settings: PeersSettings, training: FinetuneSettings, adapter: str, model: str = "trained"
) -> EvaluateSettings:
    """Return the evaluation of a training's adapter, or of its base with model="latent". Raises ConfigError."""
    filled = {"base": training.base, "basis": training.basis, **settings.evaluate, "run": settings.run.model_dump()}
    return validate(EvaluateSettings, {**filled, "adapter": adapter, "models": [model]}, "evaluate")


def check(settings: PeersSettings) -> None:
    """Check all trainings and the evaluation before the first one runs. Raises ConfigError."""
    trainings = {label: training_of(settings, label, settings.seeds[0]) for label in settings.methods}
    for label, training in trainings.items():
        try:
            FINETUNE.check(training)
            FINETUNE.check_inputs(training, find_inputs(FINETUNE, training))
        except ConfigError as error:
            raise ConfigError(f"methods.{label}: {error}") from None
    shared: dict[str, dict[str, Any]] = {
        "base": {label: t.base for label, t in trainings.items()},
        "optim.steps": {label: t.optim.steps for label, t in trainings.items()},
        "optim.batch": {label: t.optim.batch for label, t in trainings.items()},
    }
    for name, values in shared.items():
        if len(set(values.values())) > 1:
            shown = ", ".join(f"{label}: {value}" for label, value in values.items())
            raise ConfigError(f"{name} differs between the methods ({shown}); set it in `changes`")
    evaluation = evaluation_of(settings, next(iter(trainings.values())), "./given")
    names = [name for measure in measures_of(evaluation) if measure.better == "low" for name in measure.names]
    if unknown := [name for name in settings.metrics if name not in names]:
        raise ConfigError(f"metrics={unknown}: must be distances of the suite: {', '.join(names)}")


def run_peers(settings: PeersSettings) -> tuple[str, str, list[Row]]:
    """Train and evaluate all methods. Returns the folder, the parent run's ID and the rows.

    Seeds are the outer loop: an interrupted experiment has comparable results. Raises as a step does.
    """
    from pipelines.core.preflight import check_can_build, check_destinations
    from pipelines.core.tracking import open_artifact_run

    check_destinations(settings.run)
    check(settings)
    check_can_build(settings.run)
    identity = hashlib.sha256(settings.model_dump_json(exclude={"run"}).encode()).hexdigest()[:16]
    root = storage.absolute(settings.run.storage)
    folder = storage.join(root, "peers", identity)
    with open_artifact_run(folder, settings.step, settings.run, f"peers {identity[:6]}") as tracker:
        tracker.log_params(settings.model_dump(mode="json"))

        def metrics_of(training: FinetuneSettings, adapter: str, model: str = "trained") -> dict[str, float]:
            found = run_step(EVALUATE, evaluation_of(settings, training, adapter, model), tracker.run_id)
            numbers = found.artifact.manifest["metrics"]
            return {name: numbers[f"{model}/{name}"] for name in settings.metrics}

        trained: dict[tuple[str, int], tuple[FinetuneSettings, Artifact]] = {}
        for seed in settings.seeds:
            for label in settings.methods:
                training = training_of(settings, label, seed)
                trained[label, seed] = training, run_step(FINETUNE, training, tracker.run_id).artifact
        totals = [training_minutes(made, settings.run, [t.optim.steps])[0] for t, made in trained.values()]
        rows: list[Row] = []
        for (label, seed), (training, artifact) in trained.items():
            adapters = export_checkpoints(artifact, root)
            at = dict(zip(adapters, training_minutes(artifact, settings.run, list(adapters)), strict=True))
            points = {STEPS: training.optim.steps, SECONDS: step_within(at, totals)}
            for equal, step in points.items():
                if step is not None:
                    place = {"method": label, "seed": seed, "equal": equal, "step": step, "minutes": at[step]}
                    rows.append({**place, "metrics": metrics_of(training, adapters[step])})
            storage.write_bytes(storage.join(folder, "rows.json"), json.dumps(rows, indent=1).encode())
        (training, artifact), *_ = trained.values()
        base = metrics_of(training, artifact.file(FOLDER), "latent")
        rows.append({"method": BASE, "seed": None, "equal": None, "step": 0, "minutes": 0.0, "metrics": base})
        storage.write_bytes(storage.join(folder, "rows.json"), json.dumps(rows, indent=1).encode())
        header, *lines = peers_table(rows, settings.metrics)
        tracker.log_table("peers", {name: [line[i] for line in lines] for i, name in enumerate(header)})
    return folder, tracker.run_id, rows


def step_within(at: Mapping[int, float | None], totals: Sequence[float | None]) -> int | None:
    """Return the last step of a training within the time of the fastest one.

    Args:
        at: {step of a kept checkpoint or of the end: minutes of training up to it}.
        totals: minutes of all whole trainings.

    Returns:
        The step; None if the first checkpoint is later, or the time of a training is unknown.
    """
    known = [total for total in totals if total is not None]
    if len(known) < len(totals):
        return None
    return max((step for step, minutes in at.items() if minutes is not None and minutes <= min(known)), default=None)


def peers_table(rows: Sequence[Row], metrics: Sequence[str]) -> list[Sequence[str]]:
    """Return the table for a terminal: means over seeds with 95 % intervals, and differences from the first method.

    Args:
        rows: rows of `run_peers`.
        metrics: names of the metrics.
    """
    lines: list[Sequence[str]] = [("metric", "equal", "method", "step", "minutes", "value", "minus the first")]
    methods = list(dict.fromkeys(row["method"] for row in rows if row["method"] != BASE))
    for metric in metrics:
        for equal in (STEPS, SECONDS):
            found = {m: [row for row in rows if (row["method"], row["equal"]) == (m, equal)] for m in methods}
            values = {m: {row["seed"]: row["metrics"][metric] for row in own} for m, own in found.items()}
            for method, by_seed in values.items():
                if not by_seed:  # the first checkpoint is later than the end of the fastest training
                    lines.append((metric, equal, method, "-", "-", "no checkpoint in time", ""))
                    continue
                steps = sorted({row["step"] for row in found[method]})
                known = [row["minutes"] for row in found[method] if row["minutes"] is not None]
                against = difference(by_seed, values[methods[0]]) if method != methods[0] else None
                lines.append((
                    metric, equal, method, f"{steps[0]}" if len(steps) == 1 else f"{steps[0]} to {steps[-1]}",
                    f"{sum(known) / len(known):.3g}" if known else "-", _number(interval(list(by_seed.values()))),
                    _number(against) if against else "",
                ))  # fmt: skip
        lines += [
            (metric, "", BASE, "0", "0", f"{row['metrics'][metric]:.4g}", "") for row in rows if row["method"] == BASE
        ]
    return lines


def _number(found: tuple[float, float]) -> str:
    mean, half = found
    return f"{mean:.4g}" + (f" ± {half:.2g}" if half < float("inf") else "")
