"""Objective of the finetune's settings, and pickling of its task."""

import inspect
from dataclasses import replace

import cloudpickle
import pytest
import torch

from asymflow.models.flux2 import PixelFlux2
from asymflow.objectives import FinetuneObjective
from asymflow.oklab import RELEASED
from asymflow.subspace import Subspace
from pipelines.train import driver
from pipelines.train.finetune.config import Loss, Perceptual
from pipelines.train.finetune.task import FinetuneTask, blank_batch, make_objective
from pipelines.train.pretrain.task import PretrainTask

RANDOM = Perceptual(net="squeeze", weights="random", weight=0.3)


@pytest.fixture
def model(tiny_transformer):
    return PixelFlux2.from_latent(tiny_transformer(8), Subspace(torch.eye(768, 128), 1.7, "channel_first", RELEASED))


def test_every_setting_of_the_loss_reaches_it(model):
    settings = Loss(
        granularity="patch_channel", kappa=0.2, perceptual=RANDOM, loss_scale=5.0, sigma_floor=0.1, caption_dropout=0.0
    )
    found = make_objective(model, settings)
    assert found.kind == "variance_reduced"
    assert found.granularity == "patch_channel"
    assert (found.kappa, found.perceptual_weight, found.loss_scale, found.sigma_floor) == (0.2, 0.3, 5.0, 0.1)
    assert all(name.startswith("model.") for name, _ in found.named_parameters())
    loss, terms = found(**blank_batch(model, 2).inputs())
    assert torch.isfinite(loss)
    assert "perceptual" in terms
    assert "perceptual" not in make_objective(model, Loss(perceptual=None))(**blank_batch(model, 2).inputs())[1]


def test_plain_flow_matching_loads_no_perceptual_network(model, monkeypatch):
    monkeypatch.setattr("pipelines.train.finetune.task.load_perceptual", lambda settings: 1 / 0)
    assert make_objective(model, Loss(kind="flow_matching", perceptual=RANDOM)).kind == "flow_matching"


def test_batch_inputs_are_the_arguments_of_the_loss(model):
    arguments = inspect.signature(FinetuneObjective.forward).parameters.keys() - {"self"}
    batch = blank_batch(model, 1)
    assert batch.inputs().keys() == arguments - {"references", "reference_latents"}
    edits = replace(batch, references=batch.images[:, None], reference_latents=batch.z_0[:, None])
    assert edits.inputs().keys() == arguments


@pytest.mark.parametrize("task", [FinetuneTask, PretrainTask])
def test_the_task_class_is_pickled_by_reference(task):
    """Only workers import the model, and the class is found by its name."""
    sent = cloudpickle.dumps(driver.train_function(task))
    assert task.__name__.encode() in sent
    assert task.__module__.encode() in sent
    assert b"make_data_loader" not in sent
    assert len(sent) < 3000
