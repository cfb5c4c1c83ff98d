"""Run steps of the pipeline as a graph: what the workflow and sweeps share."""

import logging
from collections.abc import Callable, Mapping

from pipelines.core.config import ConfigError, StepSettings
from pipelines.core.step import Outcome, PlannedStep, Step, StepFailed, plan_step, start_ray
from pipelines.core.workers import peak_demand
from pipelines.experiments.graph_runner import GraphResult, Task, run_graph

LOGGER = logging.getLogger(__name__)


def run_independent(step: Step, settings: Mapping[str, StepSettings], parent_run: str) -> dict[str, Outcome]:
    """Run one step with several settings, at the same time as far as the cluster has the declared resources.

    Args:
        step: The step.
        settings: The settings by name.
        parent_run: ID of the MLflow run that the runs are nested in.

    Returns:
        The outcomes by name, in the order of the settings.

    Raises:
        ConfigError: A setting or an input is wrong.
        StepFailed: Some failed; raised after all others have ended, and the message names them.
    """

    def prepare(name: str, outcomes: Mapping[str, Outcome]) -> Task[Outcome]:
        return task_of(plan_step(step, settings[name]), parent_run)

    demand = {name: peak_demand(one) for name, one in settings.items()}
    result = run_graph({name: [] for name in settings}, prepare, demand, cluster_resources)
    raise_failures(result)
    return {name: result.outcomes[name] for name in settings}


def task_of(
    planned: PlannedStep, parent_run: str, log: Callable[[Outcome], Outcome] = lambda outcome: outcome
) -> Task[Outcome]:
    """Return a planned step as a task of a graph, and start Ray, which only the main thread can, if it has to run.

    Args:
        planned: The step.
        parent_run: ID of the MLflow run that its run is nested in.
        log: Called with its outcome, which it returns.
    """

    def run() -> Outcome:
        return log(planned.run(parent_run))

    if planned.finished:
        return Task(run, log(planned.finished))
    start_ray(planned.settings.run)
    return Task(run)


def cluster_resources() -> dict[str, float]:
    """Return the resources of the cluster; none if its head does not answer, so that nothing is started meanwhile."""
    import ray

    try:
        return ray.cluster_resources()
    except Exception as error:  # of many kinds, which the running steps report
        LOGGER.debug("Ray does not answer: %s", error)
        return {}


def raise_failures(result: GraphResult[Outcome]) -> None:
    """Raise what ended the workflow: a ConfigError if all failures are, else StepFailed."""
    if not result.failed:
        return
    settings_only = all(isinstance(error, ConfigError) for error in result.failed.values())
    told = [_describe(name, error) for name, error in result.failed.items()]
    skipped = [f"{name} (needs {', '.join(lacking)})" if lacking else name for name, lacking in result.skipped.items()]
    ended = "; ".join([*told, *([f"not run: {', '.join(skipped)}"] if skipped else [])])
    raise (ConfigError if settings_only else StepFailed)(ended)


def _describe(name: str, error: Exception) -> str:
    if isinstance(error, ConfigError):
        return f"{name}.{error}"
    message = str(error) or type(error).__name__
    return f"{name}: {message.removeprefix(f'{name}: ')}"
