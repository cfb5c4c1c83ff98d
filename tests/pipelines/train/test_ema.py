import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipelines.core.artifacts import MissingArtifact
from pipelines.train.checkpoint import DamagedCheckpoint, folder_of, write_checkpoint
from pipelines.train.ema import read_average


@pytest.fixture
def folder(tmp_path):
    """A training with checkpoints of steps 3 and 6, whose averages are their steps."""
    for step in (3, 6):
        tensors = {"trainable": {"w": torch.zeros(2)}, "average": {"w": torch.full((2,), float(step))}}
        write_checkpoint(folder_of(str(tmp_path)), tensors, {"step": step}, "a")
    return tmp_path


def finish(folder, steps=9):
    save_file({"w": torch.full((2,), float(steps))}, folder / "average.safetensors")
    manifest = {"step": "finetune", "id": "1", "config": {"optim": {"steps": steps}}}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(("step", "expected"), [(None, 6), (6, 6), (3, 3)])
def test_of_a_running_training_it_is_a_checkpoints(folder, step, expected):
    found = read_average(str(folder), step)
    assert (found.step, found.values["w"].tolist(), found.final) == (expected, [expected] * 2, False)


@pytest.mark.parametrize(("step", "expected"), [(None, (9, True)), (9, (9, True)), (3, (3, False))])
def test_of_a_finished_training_it_is_the_last_unless_a_checkpoint_is_asked_for(folder, step, expected):
    finish(folder)
    found = read_average(str(folder), step)
    assert (found.step, found.final) == expected
    assert found.values["w"].tolist() == [found.step] * 2


def test_without_a_checkpoint_it_says_what_to_run(tmp_path):
    with pytest.raises(MissingArtifact, match="has no complete checkpoint yet: wait for one, or run the pretrain"):
        read_average(str(tmp_path), made_by="pretrain")


def test_another_step_is_refused_with_those_that_exist(folder):
    with pytest.raises(MissingArtifact, match=r"no checkpoint of step 4 in .*; there are: \[3, 6\]"):
        read_average(str(folder), 4)


def test_a_damaged_newest_one_gives_way_unless_it_is_asked_for(folder):
    (damaged,) = Path(folder_of(str(folder))).glob("*6*/average.safetensors")
    damaged.write_bytes(b"damaged")
    assert read_average(str(folder)).step == 3
    with pytest.raises(DamagedCheckpoint):
        read_average(str(folder), 6)
