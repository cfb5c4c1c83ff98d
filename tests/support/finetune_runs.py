"""Finetunes of a tiny model that are compared with each other, and workers that fail at a step of one's choice."""

import os
import signal
import time
import zlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq

from pipelines import storage
from pipelines.finetune import STEP
from pipelines.finetune.record import Record
from pipelines.workflow import step_settings

STEPS, BATCH = 20, 6


def settings_for(tiny_workflow, folder, steps: int = STEPS, *, without_validation: bool = True, **resources):
    """The workflow's finetune settings with another storage, so that every run is a new one."""
    settings, _, outcomes = tiny_workflow
    made = {name: outcome.artifact.uri for name, outcome in outcomes.items()}
    finetune = step_settings(STEP, settings, made)
    return finetune.model_copy(
        update={
            "run": finetune.run.model_copy(update={"storage": str(folder)}),
            "optim": finetune.optim.model_copy(update={"steps": steps, "batch": BATCH}),
            "checkpoints": finetune.checkpoints.model_copy(update={"every": 5}),
            "validation": None if without_validation else finetune.validation,
            "resources": finetune.resources.model_copy(update={"zero_stage": 2, **resources}),
        }
    )


def record_of(artifact) -> Record:
    """Whose steps are there once each."""
    record = Record.from_json(storage.read_bytes(artifact.file("record.json")).decode())
    assert record.steps == list(range(1, len(record.steps) + 1))
    return record


def key_sum(curated) -> int:
    """What an epoch's `key_sums` come to when it holds every picture of training once."""
    tables = (pq.read_table(file, columns=["key"]) for file in curated.files("train", ".parquet"))
    return sum(zlib.crc32(key.encode()) for table in tables for key in table["key"].to_pylist())


def finetune_folder(storage_folder: Path) -> Path:
    (folder,) = (storage_folder / STEP.name).iterdir()
    return folder


def training_with(before_step: Any):
    """A training loop that trains on `before_step(training, batches)` in place of its batches."""

    def loop(config: dict[str, Any]) -> dict[str, Any]:
        from pipelines.finetune import loop as module

        class Changed(module.Training):
            def train_step(self, batches):
                return super().train_step(before_step(self, batches))

        training = module.Training
        module.Training = Changed
        try:
            return module.train_loop(config)
        finally:
            module.Training = training

    return loop


def failing_at(step: int, rank: int, marker: Path, fail: Any):
    """A training loop in which one rank, once, does `fail(training)` before it begins a step."""

    def before_step(training, batches):
        if training.step + 1 == step and training.rank == rank and not marker.exists():
            marker.touch()
            fail(training)
        return batches

    return training_with(before_step)


def poisoned_at(steps: set[int], rank: int):
    """A training loop in which one rank's pictures at some steps are no numbers."""

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
    training.attempt.claim(training.folder)
    time.sleep(3)


def be_preempted(training) -> None:
    """From now on Ray says that the worker's node is about to be taken away."""
    import ray.train

    from pipelines.finetune import loop

    loop.ASK_EVERY = 0.0
    ray.train.get_preemption_info = lambda: SimpleNamespace(preempted_node_ids=["a-node"])
