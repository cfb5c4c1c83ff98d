"""The workflow: every step in order, with the artifacts of earlier steps as inputs, under one MLflow run.

Steps whose artifacts are up to date are skipped.
"""

import hashlib
from typing import Any

from pipelines.core import storage
from pipelines.core.config import ConfigError
from pipelines.core.preflight import check_can_build, check_destinations
from pipelines.core.step import Outcome, Step, run_step
from pipelines.core.text_table import format_table
from pipelines.core.tracking import open_artifact_run
from pipelines.data import caption, color_stats, encode
from pipelines.data.basis import step as basis
from pipelines.data.curate import step as curate
from pipelines.evaluate import step as evaluate
from pipelines.experiments.config import WorkflowSettings, fill_all, fill_section, sections_of
from pipelines.train.finetune import step as finetune

STEPS: dict[str, Step] = {
    step.name: step
    for step in (
        curate.STEP,
        caption.STEP,
        color_stats.STEP,
        basis.STEP,
        encode.STEP,
        finetune.STEP,
        evaluate.STEP,
    )  # fmt: skip
}


def step_settings(step: Step, settings: WorkflowSettings, made: dict[str, str]) -> Any:
    """Return a step's settings, with the artifacts made so far as inputs. Raises ConfigError."""
    return fill_section(step.name, settings, made)


def check_all(settings: WorkflowSettings) -> None:
    """Validate every section, and check its external requirements, before the first step runs. Raises ConfigError."""
    for name, filled in fill_all(settings).items():
        try:
            STEPS[name].check(filled)
        except ConfigError as error:
            raise ConfigError(f"{name}.{error}") from None


def run_workflow(settings: WorkflowSettings) -> tuple[str, dict[str, Outcome]]:
    """Run the steps that have no artifact yet. Returns the parent run's ID and each step's outcome."""
    check_destinations(settings.run)
    check_all(settings)
    check_can_build(settings.run)
    identity = hashlib.sha256(settings.model_dump_json().encode()).hexdigest()[:16]
    folder = storage.join(storage.absolute(settings.run.storage), ".workflows", identity)
    outcomes: dict[str, Outcome] = {}
    with open_artifact_run(folder, "workflow", settings.run, settings.name) as tracker:
        tracker.log_params(settings.model_dump(mode="json"))
        for step in (STEPS[name] for name in sections_of(settings)):
            made = {name: outcome.artifact.uri for name, outcome in outcomes.items()}
            filled = step_settings(step, settings, made)
            outcomes[step.name] = outcome = run_step(step, filled, tracker.run_id)
            tracker.log_input(outcome.artifact)
            tracker.log_metrics(step.prefix_metrics(filled, outcome.artifact.manifest["metrics"]))
    return tracker.run_id, outcomes


def table(outcomes: dict[str, Outcome]) -> str:
    """Return a table of each step's artifact and duration."""
    rows: list[tuple[str, ...]] = [("step", "seconds", "made", "artifact")]
    for name, outcome in outcomes.items():
        metrics = list(outcome.artifact.manifest["metrics"].items())[:3]
        made = ", ".join(f"{k} {v:.4g}" for k, v in metrics)
        seconds = "cached" if outcome.reused else f"{outcome.seconds:.0f}"
        rows.append((name, seconds, made, outcome.artifact.id))
    return format_table(rows)
