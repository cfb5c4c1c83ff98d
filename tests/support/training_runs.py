"""Trainings of tiny models that are compared with each other, and workers that fail at a step of one's choice."""

import os
import signal
import time
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq

from pipelines.core import storage
from pipelines.core.artifacts import Artifact
from pipelines.core.config import validate
from pipelines.core.step import Step
from pipelines.experiments.workflow import step_settings
from pipelines.train.finetune import step as finetune
from pipelines.train.metrics_log import MetricsLog
from pipelines.train.pretrain import step as pretrain

STEPS, BATCH = 20, 6


@dataclass(frozen=True)
class Training:
    """A kind of training, of a tiny model on the pictures of the tiny workflow."""

    step: Step
    settings: Any
    curated: Artifact

    @property
    def job(self) -> str:
        return f"jobs/{self.step.name}.py"

    def settings_for(self, folder, steps: int = STEPS, *, without_validation: bool = True, **resources) -> Any:
        """With another storage, so that every run is a new one."""
        settings = self.settings
        return settings.model_copy(
            update={
                "run": settings.run.model_copy(update={"storage": str(folder)}),
                "optim": settings.optim.model_copy(update={"steps": steps, "batch": BATCH}),
                "checkpoints": settings.checkpoints.model_copy(update={"every": 5}),
                "validation": None if without_validation else settings.validation,
                "resources": settings.resources.model_copy(update={"zero_stage": 2, **resources}),
            }
        )

    def folder(self, storage_folder: Path) -> Path:
        """Of the only artifact of the kind there."""
        (folder,) = (storage_folder / self.step.name).iterdir()
        return folder


def finetune_of(tiny_workflow) -> Training:
    settings, _, outcomes = tiny_workflow
    made = {name: outcome.artifact.uri for name, outcome in outcomes.items()}
    return Training(finetune.STEP, step_settings(finetune.STEP, settings, made), outcomes["curate"].artifact)


def pretrain_of(tiny_workflow) -> Training:
    settings, _, outcomes = tiny_workflow
    curated = outcomes["curate"].artifact
    network = {
        "size": "B", "width": 32, "depth": 4, "heads": 2, "bottleneck": 24, "context_from": 1, "context_tokens": 2
    }  # fmt: skip
    tree = {
        "run": settings.run.model_dump(),
        "curated": curated.uri,
        "classes": 4,
        "network": network,
        "subspace": {"rank": 6, "kind": "random"},
        "optim": {"lr": 1e-3, "warmup_steps": 2},
        "ema": {"decay": 0.9},
        "validation": {"every": 10, "pictures": 2, "steps": 2},
    }
    return Training(pretrain.STEP, validate(pretrain.STEP.settings, tree), curated)


KINDS = {"finetune": finetune_of, "pretrain": pretrain_of}


def read_metrics_log_of(artifact) -> MetricsLog:
    """Whose steps are there once each."""
    metrics_log = MetricsLog.from_json(storage.read_bytes(artifact.file("record.json")).decode())
    assert metrics_log.steps == list(range(1, len(metrics_log.steps) + 1))
    return metrics_log


def key_sum(curated) -> int:
    """What an epoch's `key_sums` come to when it holds every picture of training once."""
    tables = (pq.read_table(file, columns=["key"]) for file in curated.files("train", ".parquet"))
    return sum(zlib.crc32(key.encode()) for table in tables for key in table["key"].to_pylist())


def training_with(before_step: Any):
    """A `driver.train_function` whose loop trains on `before_step(training, batches)` in place of its batches."""

    def loop(task: Any, config: dict[str, Any]) -> dict[str, Any]:
        from pipelines.train import loop as module

        class Changed(module.Training):
            def train_step(self, batches):
                return super().train_step(before_step(self, batches))

        training = module.Training
        module.Training = Changed
        try:
            return module.train_loop(task, config)
        finally:
            module.Training = training

    return lambda task: lambda config: loop(task, config)


def failing_at(step: int, rank: int, marker: Path, fail: Any):
    """A `driver.train_function` in which one rank, once, does `fail(training)` before it begins a step."""

    def before_step(training, batches):
        if training.step + 1 == step and training.rank == rank and not marker.exists():
            marker.touch()
            fail(training)
        return batches

    return training_with(before_step)


def poisoned_at(steps: set[int], rank: int):
    """A `driver.train_function` in which one rank's pictures at some steps are no numbers."""

    def before_step(training, batches):
        if training.step + 1 not in steps or training.rank != rank:
            return batches
        return iter([[replace(batch, images=batch.images * float("nan")) for batch in next(batches)]])

    return training_with(before_step)


def kill(training) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def terminate(training) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(1)


def give_an_error(training) -> None:
    raise RuntimeError("one rank failed")


def hang(training) -> None:
    time.sleep(3600)


def be_overtaken(training) -> None:
    """Another attempt at the same run begins."""
    training.lease.claim(training.folder)
    time.sleep(3)


def be_preempted(training) -> None:
    """From now on Ray says that the worker's node is about to be taken away."""
    import ray.train

    from pipelines.train import loop

    loop.PREEMPTION_CHECK_SECONDS = 0.0
    ray.train.get_preemption_info = lambda: SimpleNamespace(preempted_node_ids=["a-node"])
