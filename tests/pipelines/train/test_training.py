"""Ray Train and DeepSpeed on tiny models: equivalent settings give the same results."""

import pytest
import torch
from safetensors.torch import load_file
from training_runs import read_metrics_log_of

from pipelines.core import storage
from pipelines.core.step import run_step
from pipelines.data import encode
from pipelines.experiments.workflow import step_settings

pytestmark = [pytest.mark.ray, pytest.mark.slow]
TWO = {"workers": 2}
ALIKE = [
    ("finetune", {"zero_stage": 3}),
    ("finetune", {"zero_stage": 2, **TWO}),
    ("finetune", {"zero_stage": 3, **TWO}),
    ("finetune", {"zero_stage": 0, "micro_batch": 1, **TWO}),
    ("pretrain", {"zero_stage": 1, **TWO}),
    ("pretrain", {"zero_stage": 2}),
    ("pretrain", {"zero_stage": 0, "micro_batch": 1, **TWO}),
]


def curve(artifact) -> list[float]:
    return read_metrics_log_of(artifact).curves["loss"]


@pytest.mark.parametrize(
    ("training", "resources"),
    ALIKE,
    indirect=["training"],
    ids=[f"{kind} " + " ".join(f"{k}={v}" for k, v in resources.items()) for kind, resources in ALIKE],
)
def test_zero_stages_and_workers_give_the_same_loss_curve(training, tmp_path, plain, resources):
    artifact = run_step(training.step, training.settings_for(tmp_path, **resources)).artifact
    assert artifact.id == plain.id
    assert curve(artifact) == pytest.approx(curve(plain), rel=1e-4)
    for name in ("trainable", "average"):
        ours = storage.read_file(artifact.file(f"{name}.safetensors"), load_file)
        theirs = storage.read_file(plain.file(f"{name}.safetensors"), load_file)
        assert ours.keys() == theirs.keys()
        # Adam scales the rounding of a vanishing gradient to a full step: compare vectors instead of values
        a, b = (torch.cat([tensors[k].flatten() for k in sorted(theirs)]) for tensors in (ours, theirs))
        assert (a - b).norm() < 1e-3 * b.norm()


@pytest.mark.parametrize("training", ["finetune"], indirect=True)
def test_text_encoded_on_the_fly_gives_the_same_loss_curve(training, tiny_workflow, tmp_path, plain):
    settings, _, outcomes = tiny_workflow
    made = {name: outcome.artifact.uri for name, outcome in outcomes.items()}
    captions_only = step_settings(encode.STEP, settings, made).model_copy(update={"text": "on_the_fly"})
    encoded = run_step(encode.STEP, captions_only).artifact
    finetune = training.settings_for(tmp_path, zero_stage=0).model_copy(update={"encoded": encoded.uri})
    artifact = run_step(training.step, finetune).artifact
    assert artifact.manifest["inputs"]["encoded"] == encoded.id != plain.manifest["inputs"]["encoded"]
    assert curve(artifact) == pytest.approx(curve(plain), rel=1e-3)  # the last bit of bfloat16


@pytest.mark.parametrize("training", ["finetune"], indirect=True)
def test_a_quantized_base_is_another_run_with_almost_the_same_loss_curve(training, tmp_path, plain):
    settings = training.settings_for(tmp_path, zero_stage=0, without_validation=False, **TWO)
    artifact = run_step(training.step, settings.model_copy(update={"base_quantization": "nf4"})).artifact
    assert artifact.id != plain.id
    assert curve(artifact) == pytest.approx(curve(plain), rel=1e-3)
    assert curve(artifact) != curve(plain)


@pytest.mark.parametrize("training", ["finetune"], indirect=True)
def test_a_training_that_moves_nothing_returns_the_adapter_that_it_started_from(training, tmp_path, plain):
    settings = training.settings_for(tmp_path, steps=2, zero_stage=0)
    still = settings.optim.model_copy(update={"lr": 1e-12, "lr_proj_out": None})
    changes = {"start_from": plain.file("adapter"), "basis": "", "optim": still}
    artifact = run_step(training.step, settings.model_copy(update=changes)).artifact
    assert artifact.manifest["inputs"].keys() == {"curated", "encoded"}
    ours, theirs = (storage.read_file(a.file("average.safetensors"), load_file) for a in (artifact, plain))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-6)  # the adapter is in float16
