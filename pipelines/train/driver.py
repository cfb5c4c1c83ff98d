"""The job's side of a training: workers are started from the newest checkpoint on, and their end is made readable."""

import logging
import os
from collections.abc import Callable
from typing import Any

import ray.train
from ray.train import TrainingFailedError
from ray.train.torch import TorchTrainer

from pipelines.core import storage
from pipelines.core.config import ConfigError
from pipelines.core.progress import on_terminal
from pipelines.core.step import Context, StepFailed
from pipelines.train.config import TrainSettings
from pipelines.train.metrics_log import Record
from pipelines.train.run_lease import Attempt, stopping_on_sigterm
from pipelines.train.task import MakeTask
from pipelines.train.worker_setup import StoppableTorch
from pipelines.viz.figures import curves_figure


def check_processors(settings: TrainSettings, besides: int = 0) -> None:
    """A local Ray would wait for ever for processors that the machine does not have. `besides`: those of encoders."""
    if settings.run.ray_address or os.environ.get("RAY_ADDRESS"):
        return
    resources, found = settings.resources, len(os.sched_getaffinity(0))
    needed = resources.workers * resources.cpus_per_worker + besides
    if needed > found:
        raise ConfigError(
            f"resources: workers x cpus_per_worker ({resources.workers} x {resources.cpus_per_worker}) and {besides} "
            f"encoders need {needed} processors, this machine has {found}; ask for fewer, or join a cluster"
        )


def train(step: str, task: MakeTask, settings: TrainSettings, context: Context, data: dict[str, Any]) -> None:
    """Train from the newest checkpoint to the end.

    Args:
        step: the step's name.
        task: the class that each worker makes its task of, with `data` and the settings.
        settings: the step's.
        context: the artifact that is made, and its inputs.
        data: what the task needs besides, plain data and actors.

    Raises:
        StepFailed: the training did not come to its end.
    """
    attempt = Attempt.claim(context.folder)
    config = {
        **data,
        "step": step,
        "settings": settings.model_dump(mode="json"),
        "tracker": vars(context.tracker),
        "folder": context.folder,
        "attempt": attempt.name,
        "on_terminal": on_terminal(),
    }
    with stopping_on_sigterm(attempt):
        try:
            result: Any = make_trainer(task, settings, config).fit()  # typed as the old Train's
        except TrainingFailedError as error:
            logging.getLogger(__name__).exception("training failed")
            restarts = settings.resources.max_failures
            raise StepFailed(f"{step}: workers failed more than {restarts} times: {_cause(error)}") from None
    ended = result.return_value or {}
    again = "; the same command goes on from there"
    match ended.get("ended"):
        case "stopped":
            raise StepFailed(f"{step}: stopped at step {ended['step']}, as asked; a checkpoint stands{again}")
        case "fenced":
            raise StepFailed(f"{step}: stopped at step {ended['step']}: a newer attempt at this run has taken over")
        case "gave up":
            raise StepFailed(f"{step}: {ended['message']}")


def _cause(error: BaseException) -> str:
    """The last line of what a worker raised."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    return str(next(iter(failures.values()))).strip().splitlines()[-1]


def train_function(task: MakeTask) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return what each worker runs. A function inside a function is sent by value, and only workers unpack it: neither
    the driver nor Ray's controller has to import DeepSpeed, which takes seconds and prints to stdout. The class goes
    with it, by reference: in the config, which the controller unpacks, it would make it import the model."""

    def train(config: dict[str, Any]) -> dict[str, Any]:
        from pipelines.train.loop import train_loop

        return train_loop(task, config)

    return train


def make_trainer(task: MakeTask, settings: TrainSettings, config: dict[str, Any]) -> TorchTrainer:
    resources = settings.resources
    return TorchTrainer(
        train_function(task),  # type: ignore[arg-type]  # Ray passes on what it returns, and its annotation forgets that
        train_loop_config=config,
        torch_config=StoppableTorch(timeout_s=round(120 * settings.watch.hang_minutes)),
        scaling_config=ray.train.ScalingConfig(
            num_workers=resources.workers,
            use_gpu=resources.use_gpu,
            resources_per_worker={"CPU": resources.cpus_per_worker, **({"GPU": 1} if resources.use_gpu else {})},
        ),
        # Ray's own state of an attempt; checkpoints are ours, and know nothing of it
        run_config=ray.train.RunConfig(
            name=config["attempt"],
            storage_path=storage.join(config["folder"], ".train", "ray"),
            failure_config=ray.train.FailureConfig(max_failures=resources.max_failures),
        ),
    )


def draw(record: Record, context: Context) -> dict[str, tuple[list[float], list[float]]]:
    """Loss curves by step, and each term by noise level; returns the latter."""
    curves = {name: values for name, values in record.curves.items() if name not in ("sigma", "omega")}
    context.tracker.log_figure("curves", curves_figure(record.steps, curves, "step"))
    by_sigma = {name: record.means_by_sigma(name) for name in curves}
    centres = record.means_by_sigma("sigma")[0]
    figure = curves_figure(centres, {name: means for name, (_, means) in by_sigma.items()}, "sigma")
    context.tracker.log_figure("by_noise_level", figure)
    for name, (places, means) in by_sigma.items():
        for place, mean in zip(places, means, strict=True):
            context.tracker.log_metrics({f"train/by_sigma/{name}": mean}, step=round(100 * place))
    return by_sigma


def last_means(record: Record) -> dict[str, float]:
    """Each term over the last hundred steps that were taken, and how many were."""
    skipped = set(record.skipped)
    taken = [i for i, step in enumerate(record.steps) if step not in skipped][-100:]
    means = {name: sum(c[i] for i in taken) / len(taken) for name, c in record.curves.items() if taken}
    return means | {"steps": len(record.steps), "skipped": len(record.skipped)}
