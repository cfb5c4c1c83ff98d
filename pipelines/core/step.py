"""What a step is, and how one runs: found again by its identity, gone on with, or made new."""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pipelines.core import artifacts, storage
from pipelines.core.artifacts import Artifact, MissingArtifact
from pipelines.core.config import ConfigError, RunSettings, StepSettings
from pipelines.core.errors import StepFailed as StepFailed
from pipelines.core.identity import identify as identify
from pipelines.core.identity import pin_repositories

if TYPE_CHECKING:
    from pipelines.core.tracking import Tracker


@dataclass(frozen=True)
class Context:
    """What a step is given besides its settings."""

    folder: str
    """URI of the artifact being made; what an interrupted run left there may be gone on from"""
    inputs: Mapping[str, Artifact]
    tracker: "Tracker"

    def file(self, *parts: str) -> str:
        return storage.join(self.folder, *parts)


@dataclass(frozen=True)
class Step:
    """A step of the pipeline: settings and input artifacts in, one artifact out.

    `inputs` names the settings that hold artifact URIs, and which step makes each; an empty URI means "none".
    `check` looks for what would fail later (missing weights, say) and `check_inputs` for inputs that do not fit; both
    raise ConfigError, and run before Ray starts. `build` does the work and returns the numbers to report.
    `contents` names the settings (`dotted.key`) that hold files and folders from outside (models, raw data): what lies
    in them belongs to the step's identity. `repositories` are those that may name one of the hub instead. `decides`
    returns {dotted.key: value} of what else decides the result (the precision that `resources` come to): it is hashed
    in place of the settings of these names.
    """

    name: str
    settings: type[StepSettings]
    build: Callable[[Any, Context], dict[str, float]]
    inputs: Mapping[str, str] = field(default_factory=dict)
    check: Callable[[Any], None] = lambda settings: None
    check_inputs: Callable[[Any, Mapping[str, Artifact]], None] = lambda settings, inputs: None
    contents: tuple[str, ...] = ()
    repositories: tuple[str, ...] = ()
    decides: Callable[[Any, Mapping[str, Artifact]], Mapping[str, Any]] = lambda settings, inputs: {}
    data: tuple[str, ...] = ()
    """Settings that hold data from outside: shown as what the run was made from"""
    title: Callable[[Any], str] = lambda settings: ""
    """What tells a run from others of the step at a glance; a part of its name"""
    group: Callable[[Any], str] | None = None
    """What the names of its numbers begin with in MLflow; by default the step's"""
    shown: Callable[[Any], dict[str, Any]] = lambda settings: settings.model_dump(mode="json")
    """The settings worth showing as parameters"""

    def numbers(self, settings: Any, metrics: Mapping[str, float]) -> dict[str, float]:
        """Metrics by the names that MLflow shows and groups."""
        group = self.group(settings) if self.group else self.name
        return {f"{group}/{name}": value for name, value in metrics.items()}


@dataclass(frozen=True)
class Outcome:
    """A step's artifact, the MLflow run that made it, and whether it stood already."""

    artifact: Artifact
    mlflow_run: str
    seconds: float
    reused: bool


def find_inputs(step: Step, settings: StepSettings) -> dict[str, Artifact]:
    found = {}
    for name, made_by in step.inputs.items():
        if uri := getattr(settings, name):
            try:
                found[name] = artifacts.load_artifact(uri, made_by)
            except MissingArtifact as error:
                raise ConfigError(f"{name}: {error}") from None
    return found


def run_step(step: Step, settings: StepSettings, parent_run: str | None = None) -> Outcome:
    """Run one step, unless its artifact stands; another job that makes it is waited for.

    Raises ConfigError, StorageError or TrackingError before Ray starts.
    """
    # MLflow: workers import the steps too, and need none
    from pipelines.core.artifact_lock import only_job
    from pipelines.core.preflight import check_places, check_work
    from pipelines.core.provenance import read_run

    started = time.monotonic()
    check_places(settings.run)
    inputs = find_inputs(step, settings)
    settings = pin_repositories(step, settings)
    identity = identify(step, settings, inputs)
    folder = storage.join(storage.absolute(settings.run.storage), step.name, identity)

    def find_made() -> Outcome | None:
        if not storage.exists(storage.join(folder, artifacts.MANIFEST)):
            return None
        artifact = artifacts.load_artifact(folder, step.name)
        return Outcome(artifact, read_run(folder), time.monotonic() - started, reused=True)

    if made := find_made():
        return made
    step.check(settings)
    step.check_inputs(settings, inputs)
    check_work(settings.run)
    with only_job(folder):
        return find_made() or _make(step, settings, inputs, identity, folder, parent_run, started)


def _make(
    step: Step,
    settings: StepSettings,
    inputs: Mapping[str, Artifact],
    identity: str,
    folder: str,
    parent_run: str | None,
    started: float,
) -> Outcome:
    from pipelines.core.tracking import open_run_of

    start_ray(settings.run)
    name = " ".join(filter(None, [step.name, step.title(settings), identity[:6]]))
    with open_run_of(folder, step.name, settings.run, name, parent_run) as tracker:
        _introduce(step, settings, tracker, folder, inputs)
        metrics = step.build(settings, Context(folder, inputs, tracker))
        ids = {name: a.id for name, a in inputs.items()}
        artifact = artifacts.finish(folder, step.name, identity, settings, ids, metrics)
        tracker.log_metrics(step.numbers(settings, metrics))
        tracker.set_tag("artifact", artifact.uri)
    return Outcome(artifact, tracker.run_id, time.monotonic() - started, reused=False)


def _introduce(
    step: Step, settings: StepSettings, tracker: "Tracker", folder: str, inputs: Mapping[str, Artifact]
) -> None:
    """What a person should see of a run that has just begun."""
    from pipelines.core.provenance import describe

    shown = step.shown(settings)
    tracker.log_params({name: value for name, value in shown.items() if name not in (*step.inputs, *step.data)})
    for artifact in inputs.values():
        tracker.log_input(artifact)
    data = {name: getattr(settings, name) for name in step.data if getattr(settings, name)}
    for name, uri in data.items():
        tracker.log_dataset(name, uri, storage.fingerprint(uri))
    tracker.set_description(describe(folder, inputs, data, tracker.page_of))


def start_ray(run: RunSettings) -> None:
    """Join the named cluster, else start a local Ray; a no-op when one is already connected."""
    import ray

    # `map_items` shows the progress of a step instead of a page of operators
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    on_sigterm = signal.getsignal(signal.SIGTERM)
    address = run.ray_address or os.environ.get("RAY_ADDRESS", "")
    if address:
        ray.init(address=address, log_to_driver=True)
    else:
        from pipelines.core.local_ray import start_local_ray

        start_local_ray()
    if callable(on_sigterm) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own prints a stack trace, and aborts


def stop_ray() -> None:
    """Leave Ray, if this process has joined or started one. What its workers said last is printed before."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        time.sleep(0.5)  # as Ray does at a process's end: messages of workers arrive that late
        ray.shutdown()
