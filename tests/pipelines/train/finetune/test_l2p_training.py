"""An L2P training from images to an adapter, interrupted and not."""

from pathlib import Path

import pytest
import torch
import training_runs
from ray import cloudpickle
from training_runs import failing_at, finetune_of, give_an_error, read_metrics_log_of

from asymflow.adapters import kind_of, read_adapter, read_defaults
from pipelines.core.config import validate
from pipelines.core.step import StepFailed, run_step
from pipelines.sample.parameters import SamplingParameters
from pipelines.sample.sampler import load_sampler
from pipelines.train import driver
from pipelines.train.checkpoint import folder_of, list_checkpoints
from pipelines.train.finetune.config import FinetuneSettings
from pipelines.train.finetune.step import STEP

pytestmark = [pytest.mark.ray, pytest.mark.slow]
cloudpickle.register_pickle_by_value(training_runs)  # workers cannot import the tests' modules


def test_it_resumes_from_its_checkpoint_and_its_adapter_is_sampled_from(tiny_workflow, tmp_path, monkeypatch):
    training = finetune_of(tiny_workflow)

    def settings(name: str) -> FinetuneSettings:
        tree = training.settings.model_dump()
        tree |= {
            "run": {**tree["run"], "storage": str(tmp_path / name)}, "model": "l2p", "lora": None,
            "l2p": {"blocks": 1, "channels": 4}, "loss": {"kind": "flow_matching"}, "validation": None,
            "optim": {"batch": 4, "steps": 5, "warmup_steps": 1}, "ema": {"start_step": 1},
            "checkpoints": {"every": 2, "keep_last": 5}, "resources": {"zero_stage": 0, "max_failures": 0},
        }  # fmt: skip
        return validate(FinetuneSettings, tree)

    plain = run_step(STEP, settings("plain")).artifact
    with monkeypatch.context() as patch:
        patch.setattr(driver, "train_function", failing_at(4, 0, tmp_path / "failed", give_an_error))
        with pytest.raises(StepFailed, match="one rank failed"):
            run_step(STEP, settings("again"))
    artifact = run_step(STEP, settings("again")).artifact
    assert artifact.id == plain.id
    assert [c.step for c in list_checkpoints(folder_of(artifact.uri))] == [2, 4, 5]
    losses, expected = (read_metrics_log_of(a).curves["loss"] for a in (artifact, plain))
    assert losses == pytest.approx(expected, rel=1e-4)
    assert len(losses) == 5

    adapter, undisturbed = artifact.file("adapter"), plain.file("adapter")
    tensors, config = read_adapter(adapter)
    assert kind_of(config) == "l2p"
    assert not any(".lora_" in name for name in tensors)
    for name, tensor in read_adapter(undisturbed)[0].items():
        torch.testing.assert_close(tensors[name], tensor, rtol=1e-2, atol=1e-4)
    defaults = read_defaults(adapter)
    sampler = load_sampler("trained", training.settings.base, Path(adapter), None, defaults, "cpu")
    images = sampler(["a sun"], [3], SamplingParameters(32, 32, steps=2, guidance=2.0, shift=3.0))
    assert images.shape == (1, 3, 32, 32)
    assert torch.isfinite(images).all()
