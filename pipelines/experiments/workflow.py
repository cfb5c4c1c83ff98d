"""The workflow: all steps, each once the artifacts that it takes exist, under one MLflow run.

Steps whose artifacts are up to date are skipped. `graph` derives the order from the steps' inputs.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

from pipelines.core import storage
from pipelines.core.config import ConfigError
from pipelines.core.preflight import check_can_build, check_destinations
from pipelines.core.step import Outcome, Step, plan_step
from pipelines.core.text_table import format_table
from pipelines.core.tracking import Tracker, open_artifact_run
from pipelines.data import caption, color_stats, encode
from pipelines.data.basis import step as basis
from pipelines.data.curate import step as curate
from pipelines.evaluate import step as evaluate
from pipelines.experiments.config import WorkflowSettings
from pipelines.experiments.graph import build_graph, fill_all, fill_section, format_demand, sections_of
from pipelines.experiments.graph_runner import Task, run_graph
from pipelines.experiments.step_graph import cluster_resources, raise_failures, task_of
from pipelines.experiments.timeline import log_graph, log_timeline, read_timeline, timeline_of
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
    sections = sections_of(settings)
    for name, filled in fill_all(settings).items():
        try:
            STEPS[sections[name]].check(filled)
        except ConfigError as error:
            raise ConfigError(f"{name}.{error}") from None


def run_workflow(settings: WorkflowSettings) -> tuple[str, dict[str, Outcome]]:
    """Run the steps that have no artifact yet, independent ones at the same time.

    Returns:
        The parent run's ID and each step's outcome, in the order of the sections.

    Raises:
        ConfigError: A setting or an input is wrong.
        StepFailed: Steps failed; the message names them and the steps that were skipped therefore.
    """
    check_destinations(settings.run)
    check_all(settings)
    check_can_build(settings.run)
    identity = hashlib.sha256(settings.model_dump_json().encode()).hexdigest()[:16]
    folder = storage.join(storage.absolute(settings.run.storage), ".workflows", identity)
    with open_artifact_run(folder, "workflow", settings.run, settings.name) as tracker:
        tracker.log_params(settings.model_dump(mode="json"))
        tracker.set_tag("artifact", folder)
        graph = build_graph(settings)
        log_graph(graph, tracker, {name: format_demand(node.demand) for name, node in graph.items()})

        def prepare(name: str, outcomes: Mapping[str, Outcome]) -> Task[Outcome]:
            return _prepare(name, settings, outcomes, tracker)

        result = run_graph(
            {name: node.needs for name, node in graph.items()},
            prepare,
            {name: node.demand for name, node in graph.items()},
            cluster_resources,
        )
        log_timeline(timeline_of(graph, result, read_timeline(folder)), graph, folder, tracker)
        raise_failures(result)
    return tracker.run_id, {name: result.outcomes[name] for name in graph}


def _prepare(name: str, settings: WorkflowSettings, outcomes: Mapping[str, Outcome], tracker: Tracker) -> Task[Outcome]:
    """Return the task of one section, which also logs its outcome to the workflow's run."""
    made = {other: outcome.artifact.uri for other, outcome in outcomes.items()}
    step, filled = STEPS[sections_of(settings)[name]], fill_section(name, settings, made)
    planned = plan_step(step, filled)

    def log(outcome: Outcome) -> Outcome:
        tracker.log_input(outcome.artifact)
        tracker.log_metrics(step.prefix_metrics(filled, outcome.artifact.manifest["metrics"]))
        return outcome

    return task_of(planned, tracker.run_id, log)


def table(outcomes: dict[str, Outcome]) -> str:
    """Return a table of each step's artifact and duration."""
    rows: list[tuple[str, ...]] = [("step", "seconds", "made", "artifact")]
    for name, outcome in outcomes.items():
        metrics = list(outcome.artifact.manifest["metrics"].items())[:3]
        made = ", ".join(f"{k} {v:.4g}" for k, v in metrics)
        seconds = "cached" if outcome.reused else f"{outcome.seconds:.0f}"
        rows.append((name, seconds, made, outcome.artifact.id))
    return format_table(rows)
