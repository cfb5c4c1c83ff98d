import pytest
import torch
from tiny_pretrained import NETWORK

from asymflow.models.jit import LAYOUT
from asymflow.srgb import SrgbSpace
from asymflow.subspace import Subspace
from pipelines.core.config import validate
from pipelines.data.curate.shard import SCHEMA
from pipelines.data.datasets import RowWriter
from pipelines.train.pretrain.config import Loss, PretrainSettings
from pipelines.train.pretrain.flops import training_flops
from pipelines.train.pretrain.task import PretrainTask, make_objective
from pipelines.train.task import Tokens


@pytest.fixture
def task(tmp_path):
    tree = {
        "curated": "c", "classes": 4, "network": NETWORK, "subspace": {"rank": 6, "kind": "random"},
        "optim": {"lr": 3e-4, "batch": 2}, "ema": {"decay": 0.9},
    }  # fmt: skip
    settings = validate(PretrainSettings, tree)
    Subspace(torch.eye(768, 6), 1.0, LAYOUT, SrgbSpace(), {}).save(tmp_path / "subspace.safetensors")
    file = tmp_path / "a.parquet"
    with RowWriter(file, SCHEMA) as writer:
        writer.add({"key": "a", "image": b"", "caption": "", "width": 32, "height": 32, "label": 0})
    config = {
        "settings": settings.model_dump(mode="json"), "subspace": str(tmp_path / "subspace.safetensors"),
        "curated": [str(file)], "size": (32, 32),
    }  # fmt: skip
    return PretrainTask(config, 0, 1)


def test_all_trained_values_are_one_group_at_one_rate(task):
    (group,) = task.parameter_groups()
    assert (group["lr"], group["peak"]) == (3e-4, 3e-4)
    assert sum(p.numel() for p in group["params"]) == sum(p.numel() for p in task.model.trainable().values())


def test_a_blank_batch_passes_the_loss(task):
    batch = task.blank_batch(2)
    loss, terms = task.objective(**batch.inputs())
    loss.backward()
    assert torch.isfinite(loss)
    assert terms["loss"].shape == (2,)
    assert batch.tokens == Tokens(all=2, image=1)


def test_the_average_decays_as_set_from_the_first_values(task):
    values = {name: p.detach().clone() for name, p in task.model.trainable().items()}
    average = task.moving_average(values)
    assert average.decay_at(100_000) == pytest.approx(0.9)


def test_operations_are_those_of_the_batch(task):
    assert task.step_flops(Tokens(8, 4)) == 2 * training_flops(task.settings.jit, 4)


def test_the_floor_of_the_settings_reaches_the_loss(task):
    assert make_objective(task.model, Loss(sigma_floor=0.2)).sigma_floor == 0.2
