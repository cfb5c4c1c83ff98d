"""Driver side of a training: start the workers from the newest checkpoint, and report how the run ended."""

import logging
import math
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from typing import Any

import ray.train
from ray.train import TrainingFailedError
from ray.train.torch import TorchTrainer

from pipelines.core import storage
from pipelines.core.cluster_resources import describe_waiting, is_waiting
from pipelines.core.config import ConfigError
from pipelines.core.progress import on_terminal
from pipelines.core.step import Context, StepFailed
from pipelines.core.threads import run_in_thread
from pipelines.train.channel import Channel
from pipelines.train.config import TrainSettings
from pipelines.train.metrics_log import MetricsLog
from pipelines.train.run_lease import RunLease
from pipelines.train.stopping import catch_stop_signals, describe_resume
from pipelines.train.task import MakeTask
from pipelines.train.tracking_log import send_unsent
from pipelines.train.worker_setup import ControllerGuard, InsufficientResources, StoppableTorch
from pipelines.viz.figures import curves_figure

LOGGER = logging.getLogger(__name__)
POLL_SECONDS = 0.2
REPORT_SECONDS = 20.0
"""A training that has not started after this time reports what it waits for"""
ABANDON_SECONDS = 15.0
"""Time for the workers of an abandoned training to end"""


def check_processors(settings: TrainSettings, besides: int = 0) -> None:
    """Raise ConfigError if a local Ray has fewer processors than the training needs.

    A local Ray would wait forever for processors that the machine does not have.

    Args:
        settings: settings of the training.
        besides: processors of the encoders beside the training.
    """
    if settings.run.ray_address or os.environ.get("RAY_ADDRESS"):
        return
    resources, found = settings.resources, len(os.sched_getaffinity(0))
    needed = resources.workers * resources.cpus_per_worker + besides
    if needed > found:
        raise ConfigError(
            f"resources: workers x cpus_per_worker ({resources.workers} x {resources.cpus_per_worker}) and {besides} "
            f"encoders need {needed} processors, this machine has {found}; request fewer, or join a cluster"
        )


def train(step: str, task: MakeTask, settings: TrainSettings, context: Context, data: dict[str, Any]) -> None:
    """Train from the newest checkpoint to the end.

    Args:
        step: name of the step.
        task: task class, instantiated by each worker with `data` and the settings.
        settings: settings of the step.
        context: the artifact to build, and its inputs.
        data: what else the task needs: plain data and actors.

    Raises:
        StepFailed: the training did not finish.
    """
    lease = RunLease.claim(context.folder)
    config = {
        **data,
        "step": step,
        "settings": settings.model_dump(mode="json"),
        "tracker": vars(context.tracker),
        "folder": context.folder,
        "attempt": lease.name,
        "on_terminal": on_terminal(),
    }
    channel = Channel(lease.name)
    with catch_stop_signals() as stop_requested:
        try:
            ended = fit(step, settings, make_trainer(task, settings, config), channel, stop_requested)
        except TrainingFailedError as error:
            if isinstance(getattr(error, "controller_failure", None), InsufficientResources):
                limit = settings.resources.wait_minutes
                raise StepFailed(
                    f"{step}: gave up after {limit:g} minutes (resources.wait_minutes): {describe_shortage(settings)}"
                ) from None
            LOGGER.exception("training failed")
            restarts = settings.resources.max_failures
            raise StepFailed(f"{step}: workers failed more than {restarts} times: {_cause(error)}") from None
        finally:
            with suppress(Exception):  # Ray's head may be what failed
                channel.clear()
    match ended.get("ended"):
        case "stopped":
            raise StepFailed(f"{step}: stopped at step {ended['step']}, as requested; {describe_resume(ended)}")
        case "fenced":
            raise StepFailed(f"{step}: stopped at step {ended['step']}: a newer attempt of this run has taken over")
        case "gave up":
            raise StepFailed(f"{step}: {ended['message']}")


def fit(
    step: str, settings: TrainSettings, trainer: TorchTrainer, channel: Channel, stop_requested: threading.Event
) -> dict[str, Any]:
    """Train in a thread, and return the result of the workers' loop.

    The calling thread handles signals meanwhile, forwards stop requests, and reports why a training does not start.

    Raises:
        StepFailed: the training was stopped before it started, or did not end in time.
    """
    fitting: Future[Any] = run_in_thread(trainer.fit, "fit")
    try:
        _watch(step, settings, fitting, channel, stop_requested)
    finally:
        if not fitting.done():  # workers hold nothing after their step, however it ended
            with suppress(Exception):  # Ray's head may be what failed
                channel.abandon()
            wait([fitting], ABANDON_SECONDS)
    return fitting.result().return_value or {}


def _watch(
    step: str, settings: TrainSettings, fitting: Future[Any], channel: Channel, stop_requested: threading.Event
) -> None:
    """Wait until the training has ended. Raises StepFailed as `fit` does."""
    report_at, stop_by, is_stop_sent = time.monotonic() + REPORT_SECONDS, math.inf, False
    progress: dict[str, Any] | None = None
    while not wait([fitting], POLL_SECONDS).done:
        now = time.monotonic()
        if stop_requested.is_set() and stop_by == math.inf:
            LOGGER.warning("stop requested: writing a checkpoint within %g minutes", settings.watch.stop_minutes)
            stop_by = now + 60 * settings.watch.stop_minutes
        try:
            if progress is None or stop_requested.is_set():
                progress = channel.progress() or progress
            if stop_requested.is_set() and not is_stop_sent:
                channel.request_stop()
                is_stop_sent = True
            if progress is None and now >= report_at:
                report_at = now + 1
                if is_waiting(settings.resources.workers, bundle_of(settings)):
                    report_at = now + 10 * REPORT_SECONDS
                    LOGGER.warning("%s: waiting for room for its workers: %s", step, describe_shortage(settings))
        except Exception as error:  # Ray's head does not answer: retried in the next round, or `fit` fails
            LOGGER.debug("Ray does not answer: %s", error)
        if stop_by < math.inf and progress is None:
            raise StepFailed(f"{step}: stopped before the training started, as requested; run the same command again")
        if now > stop_by:
            good = (progress or {}).get("good")
            raise StepFailed(
                f"{step}: did not stop within {settings.watch.stop_minutes:g} minutes (watch.stop_minutes) and was "
                f"ended; last complete checkpoint: {'none' if good is None else f'step {good}'}"
            )


def describe_shortage(settings: TrainSettings) -> str:
    """Describe what the workers need, what is free, and what uses the rest."""
    workers = settings.resources.workers
    return describe_waiting({name: workers * amount for name, amount in bundle_of(settings).items()})


def bundle_of(settings: TrainSettings) -> dict[str, float]:
    """Return the resources of one worker, {resource: amount}."""
    resources = settings.resources
    return {"CPU": resources.cpus_per_worker, **({"GPU": 1} if resources.use_gpu else {})}


def _cause(error: BaseException) -> str:
    """Return the last line of a worker's exception."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    return str(next(iter(failures.values()))).strip().splitlines()[-1]


def train_function(task: MakeTask) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return the function that each worker runs.

    A nested function is pickled by value and unpickled by the workers alone: neither the driver nor Ray's controller
    has to import DeepSpeed, which takes seconds and prints to stdout. The task class is captured by reference; in the
    config, which the controller unpickles, it would make the controller import the model.
    """

    def train(config: dict[str, Any]) -> dict[str, Any]:
        from pipelines.train.loop import train_loop

        return train_loop(task, config)

    return train


def make_trainer(task: MakeTask, settings: TrainSettings, config: dict[str, Any]) -> TorchTrainer:
    """Return Ray Train's trainer for a task. `config` is passed to each worker."""
    resources = settings.resources
    # interval at which Ray Train checks whether the wait is over; 60 is its default
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(min(60.0, 60 * resources.wait_minutes))
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # in the driver's log it doubles each line of a worker
    return TorchTrainer(
        train_function(task),  # type: ignore[arg-type]  # Ray passes on what it returns, and its annotation forgets that
        train_loop_config=config,
        torch_config=StoppableTorch(timeout_s=round(120 * settings.watch.hang_minutes)),
        scaling_config=ray.train.ScalingConfig(
            num_workers=resources.workers,
            use_gpu=resources.use_gpu,
            resources_per_worker=bundle_of(settings),
        ),
        # Ray's own state of an attempt; our checkpoints do not depend on it
        run_config=ray.train.RunConfig(
            name=config["attempt"],
            storage_path=storage.join(config["folder"], ".train", "ray"),
            failure_config=ray.train.FailureConfig(max_failures=resources.max_failures),
            callbacks=[ControllerGuard(60 * resources.wait_minutes, config["attempt"])],  # type: ignore[list-item]  # the annotation knows one kind
        ),
    )


def log_curves(metrics_log: MetricsLog, context: Context) -> dict[str, tuple[list[float], list[float]]]:
    """Log loss curves by step, and each term by noise level. Returns the latter.

    Metrics that MLflow missed while it was unavailable are sent first.

    Returns:
        {term: (centers of the noise-level bins, means)}.
    """
    send_unsent(context.tracker, context.folder)
    curves = {name: values for name, values in metrics_log.curves.items() if name not in ("sigma", "omega")}
    context.tracker.log_figure("curves", curves_figure(metrics_log.steps, curves, "step"))
    by_sigma = {name: metrics_log.means_by_sigma(name) for name in curves}
    centers = metrics_log.means_by_sigma("sigma")[0]
    figure = curves_figure(centers, {name: means for name, (_, means) in by_sigma.items()}, "sigma")
    context.tracker.log_figure("by_noise_level", figure)
    for name, (centers, means) in by_sigma.items():
        for center, mean in zip(centers, means, strict=True):
            context.tracker.log_metrics({f"train/by_sigma/{name}": mean}, step=round(100 * center))
    return by_sigma


def last_means(metrics_log: MetricsLog) -> dict[str, float]:
    """Return each term's mean over the last hundred steps that were not skipped, and the numbers of steps."""
    skipped = set(metrics_log.skipped)
    taken = [i for i, step in enumerate(metrics_log.steps) if step not in skipped][-100:]
    means = {name: sum(c[i] for i in taken) / len(taken) for name, c in metrics_log.curves.items() if taken}
    return means | {"steps": len(metrics_log.steps), "skipped": len(metrics_log.skipped)}
