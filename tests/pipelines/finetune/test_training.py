"""Real Ray Train and DeepSpeed on a tiny model: settings that should agree, do."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from pipelines import encode, storage
from pipelines.finetune import STEP
from pipelines.finetune.record import Record
from pipelines.steps import run_step
from pipelines.workflow import step_settings

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ROOT = Path(__file__).parents[3]


def settings_for(tiny_workflow, folder, steps: int = 20, **resources):
    """The workflow's finetune settings with another storage, so that every run is a new one."""
    settings, _, outcomes = tiny_workflow
    made = {name: outcome.artifact.uri for name, outcome in outcomes.items()}
    finetune = step_settings(STEP, settings, made)
    return finetune.model_copy(
        update={
            "run": finetune.run.model_copy(update={"storage": str(folder)}),
            "optim": finetune.optim.model_copy(update={"steps": steps}),
            "checkpoint_every": 5,
            "resources": finetune.resources.model_copy(update=resources),
        }
    )


def curve(artifact) -> list[float]:
    record = Record.from_json(storage.read_bytes(artifact.file("record.json")).decode())
    assert record.steps == list(range(1, len(record.steps) + 1))  # none repeated, none skipped
    return record.curves["loss"]


@pytest.fixture(scope="module")
def plain(tiny_workflow, tmp_path_factory):
    return run_step(STEP, settings_for(tiny_workflow, tmp_path_factory.mktemp("plain"), zero_stage=0)).artifact


@pytest.mark.parametrize(
    "resources",
    [
        {"zero_stage": 2},
        {"zero_stage": 3},
        {"zero_stage": 2, "workers": 2},
        {"zero_stage": 3, "workers": 2},
        {"zero_stage": 0, "workers": 2, "micro_batch": 1},
    ],
    ids=lambda r: " ".join(f"{k}={v}" for k, v in r.items()),
)
def test_zero_stages_and_workers_give_the_same_loss_curve(tiny_workflow, tmp_path, plain, resources):
    artifact = run_step(STEP, settings_for(tiny_workflow, tmp_path, **resources)).artifact
    assert artifact.id == plain.id
    assert curve(artifact) == pytest.approx(curve(plain), rel=1e-4)
    for name in ("trainable", "average"):
        ours = storage.read_file(artifact.file(f"{name}.safetensors"), load_file)
        theirs = storage.read_file(plain.file(f"{name}.safetensors"), load_file)
        assert ours.keys() == theirs.keys()
        # value by value Adam turns the rounding of a vanishing gradient into a whole step: compare as vectors
        a, b = (torch.cat([tensors[k].flatten() for k in sorted(theirs)]) for tensors in (ours, theirs))
        assert (a - b).norm() < 1e-3 * b.norm()


def test_text_encoded_on_the_fly_gives_the_same_loss_curve(tiny_workflow, tmp_path, plain):
    settings, _, outcomes = tiny_workflow
    made = {name: outcome.artifact.uri for name, outcome in outcomes.items()}
    captions_only = step_settings(encode.STEP, settings, made).model_copy(update={"text": "on_the_fly"})
    encoded = run_step(encode.STEP, captions_only).artifact
    finetune = settings_for(tiny_workflow, tmp_path, zero_stage=0).model_copy(update={"encoded": encoded.uri})
    artifact = run_step(STEP, finetune).artifact
    assert artifact.manifest["inputs"]["encoded"] == encoded.id != plain.manifest["inputs"]["encoded"]
    assert curve(artifact) == pytest.approx(curve(plain), rel=1e-3)  # the last bit of bfloat16


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_killed_in_the_middle_it_goes_on_as_if_nothing_had_been(tiny_workflow, tmp_path, plain, zero_stage):
    """kill -9 of the whole process group after a checkpoint; the second run ends with the first's curve."""
    settings = settings_for(tiny_workflow, tmp_path, zero_stage=zero_stage)
    config = tmp_path / "finetune.yaml"
    config.write_text(yaml.safe_dump(json.loads(settings.model_dump_json())))
    command = [sys.executable, str(ROOT / "jobs/finetune.py"), str(config)]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 240
    checkpoints = tmp_path / STEP.name
    while not list(checkpoints.glob("*/.train/train/checkpoint_*/record.json")):
        assert process.poll() is None and time.monotonic() < deadline, "no checkpoint came"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not list(checkpoints.glob("*/manifest.json"))

    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    artifact = run_step(STEP, settings).artifact
    assert json.loads(done.stdout.splitlines()[-1])["artifact"] == artifact.uri
    assert curve(artifact) == pytest.approx(curve(plain), rel=1e-5)
