"""Finetunes of a tiny model that are compared with each other, and workers that fail at a step of one's choice."""

import os
import signal
import time
import zlib
from pathlib import Path
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


def failing_at(step: int, rank: int, marker: Path, fail: Any):
    """A training loop in which one rank, once, does `fail(training)` before it begins a step."""

    def loop(config: dict[str, Any]) -> dict[str, Any]:
        from pipelines.finetune import loop as module

        class Failing(module.Training):
            def train_step(self, batches):
                if self.step + 1 == step and self.rank == rank and not marker.exists():
                    marker.touch()
                    fail(self)
                return super().train_step(batches)

        training = module.Training
        module.Training = Failing
        try:
            return module.train_loop(config)
        finally:
            module.Training = training

    return loop


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
