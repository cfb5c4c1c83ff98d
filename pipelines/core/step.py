"""Define and run steps. An unchanged step reuses its artifact, an interrupted one resumes, otherwise it is built."""

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
    """The arguments of a step's `build` besides its settings."""

    folder: str
    """URI of the artifact being made; it may hold files of an interrupted run to resume from"""
    inputs: Mapping[str, Artifact]
    """Input artifacts, by setting"""
    tracker: "Tracker"

    def file(self, *parts: str) -> str:
        """Return the URI of a file below the artifact's folder."""
        return storage.join(self.folder, *parts)


@dataclass(frozen=True)
class Step:
    """A step of the pipeline, which makes one artifact from settings and input artifacts."""

    name: str
    settings: type[StepSettings]
    build: Callable[[Any, Context], dict[str, float]]
    """Does the work and returns the metrics to report"""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """{setting that holds an artifact's URI: step that makes it}; an empty URI means that the input is not used"""
    check: Callable[[Any], None] = lambda settings: None
    """Raises ConfigError, before Ray starts, for settings that would fail later (missing weights, for example)"""
    check_inputs: Callable[[Any, Mapping[str, Artifact]], None] = lambda settings, inputs: None
    """Raises ConfigError, before Ray starts, for inputs that do not match the settings"""
    contents: tuple[str, ...] = ()
    """Settings (dotted keys) that name external files or folders, whose content is hashed into the artifact's ID"""
    repositories: tuple[str, ...] = ()
    """Settings that may name a hub repository instead of a folder"""
    hash_overrides: Callable[[Any, Mapping[str, Artifact]], Mapping[str, Any]] = lambda settings, inputs: {}
    """Returns {dotted key: value} that is hashed in place of these settings: what else determines the result, such as
    the precision that follows from `resources`"""
    data: tuple[str, ...] = ()
    """Settings that name external data, which MLflow shows as the run's inputs"""
    title: Callable[[Any], str] = lambda settings: ""
    """Returns a short text that distinguishes runs of the step, as part of the run's name"""
    group: Callable[[Any], str] | None = None
    """Returns the prefix of the step's metrics in MLflow; by default the step's name"""
    shown: Callable[[Any], dict[str, Any]] = lambda settings: settings.model_dump(mode="json")
    """Returns the settings that MLflow shows as parameters"""

    def prefix_metrics(self, settings: Any, metrics: Mapping[str, float]) -> dict[str, float]:
        """Return metrics under the names that MLflow shows, with the group as prefix."""
        group = self.group(settings) if self.group else self.name
        return {f"{group}/{name}": value for name, value in metrics.items()}


@dataclass(frozen=True)
class Outcome:
    """The result of running a step."""

    artifact: Artifact
    mlflow_run: str
    """ID of the MLflow run that made the artifact"""
    seconds: float
    reused: bool
    """Whether the artifact was up to date"""


def find_inputs(step: Step, settings: StepSettings) -> dict[str, Artifact]:
    """Load the input artifacts that the settings name, by setting. Raises ConfigError if one is missing."""
    found = {}
    for name, made_by in step.inputs.items():
        if uri := getattr(settings, name):
            try:
                found[name] = artifacts.load_artifact(uri, made_by)
            except MissingArtifact as error:
                raise ConfigError(f"{name}: {error}") from None
    return found


@dataclass(frozen=True)
class PlannedStep:
    """A step with its settings, inputs and artifact ID, ready to run."""

    step: Step
    settings: StepSettings
    inputs: Mapping[str, Artifact]
    identity: str
    folder: str
    """URI of the artifact, finished or not"""
    finished: Outcome | None
    """The outcome if the artifact was up to date when the step was planned"""

    def run(self, parent_run: str | None = None) -> Outcome:
        """Build the artifact. If another job is building it, wait for that job and reuse its artifact.

        Args:
            parent_run: ID of the MLflow run that the step's run is nested in.
        """
        # loads MLflow, which workers do not need although they import this module
        from pipelines.core.artifact_lock import hold_artifact_lock

        started = time.monotonic()
        with hold_artifact_lock(self.folder):
            return _find_finished(self.step, self.folder, started) or self._build(parent_run, started)

    def _build(self, parent_run: str | None, started: float) -> Outcome:
        from pipelines.core.tracking import open_artifact_run

        step, settings, folder = self.step, self.settings, self.folder
        start_ray(settings.run)
        name = " ".join(filter(None, [step.name, step.title(settings), self.identity[:6]]))
        with open_artifact_run(folder, step.name, settings.run, name, parent_run) as tracker:
            _log_provenance(step, settings, tracker, folder, self.inputs)
            metrics = step.build(settings, Context(folder, self.inputs, tracker))
            ids = {name: artifact.id for name, artifact in self.inputs.items()}
            artifact = artifacts.write_manifest(folder, step.name, self.identity, settings, ids, metrics)
            tracker.log_metrics(step.prefix_metrics(settings, metrics))
            tracker.set_tag("artifact", artifact.uri)
        return Outcome(artifact, tracker.run_id, time.monotonic() - started, reused=False)


def run_step(step: Step, settings: StepSettings, parent_run: str | None = None) -> Outcome:
    """Run one step, or reuse its artifact if it is up to date. If another job is building it, wait for that job.

    Args:
        step: The step.
        settings: Its settings.
        parent_run: ID of the MLflow run that the step's run is nested in.

    Raises:
        ConfigError: A setting or an input is wrong; before Ray starts.
        StorageError: The storage does not respond; before Ray starts.
        TrackingError: The MLflow store does not respond; before Ray starts.
    """
    planned = plan_step(step, settings)
    return planned.finished or planned.run(parent_run)


def plan_step(step: Step, settings: StepSettings) -> PlannedStep:
    """Find a step's inputs and artifact, and check that an unfinished artifact can be built. Raises as `run_step`."""
    from pipelines.core.preflight import check_can_build, check_destinations

    started = time.monotonic()
    check_destinations(settings.run)
    inputs = find_inputs(step, settings)
    settings = pin_repositories(step, settings)
    identity = identify(step, settings, inputs)
    folder = storage.join(storage.absolute(settings.run.storage), step.name, identity)
    finished = _find_finished(step, folder, started)
    if not finished:
        step.check(settings)
        step.check_inputs(settings, inputs)
        check_can_build(settings.run)
    return PlannedStep(step, settings, inputs, identity, folder, finished)


def _find_finished(step: Step, folder: str, started: float) -> Outcome | None:
    from pipelines.core.provenance import read_run

    if not storage.exists(storage.join(folder, artifacts.MANIFEST)):
        return None
    artifact = artifacts.load_artifact(folder, step.name)
    return Outcome(artifact, read_run(folder), time.monotonic() - started, reused=True)


def _log_provenance(
    step: Step, settings: StepSettings, tracker: "Tracker", folder: str, inputs: Mapping[str, Artifact]
) -> None:
    """Log the parameters, inputs and description of a run that starts."""
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
    """Connect to the configured cluster, or start a local Ray; a no-op if Ray is already initialized."""
    import ray

    # `map_items` shows a step's progress instead of Ray Data's operators
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
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray's handler prints a stack trace and aborts


def stop_ray() -> None:
    """Disconnect from Ray, if initialized, after the workers' last messages are printed."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        time.sleep(0.5)  # workers' messages arrive with this delay; Ray waits as long at exit
        ray.shutdown()
