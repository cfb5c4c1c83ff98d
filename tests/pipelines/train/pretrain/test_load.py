"""Pretrained models load, whatever they were trained with."""

import json

import pytest
import torch
from safetensors.torch import save_file

from asymflow.models.jit import LAYOUT, PixelJiT
from asymflow.srgb import SrgbSpace
from asymflow.subspace import Subspace
from pipelines.core.artifacts import Artifact
from pipelines.core.config import validate
from pipelines.evaluate.class_subject import read_class_model
from pipelines.train.pretrain.config import PretrainSettings
from pipelines.train.pretrain.model import SUBSPACE, SUMMARY, load_pretrained


@pytest.fixture
def trained(tmp_path):
    """Return a function of optimizer and ZeRO stage: the artifact of such a training, and its average."""

    def make(optimizer: str, zero_stage: int):
        network = {
            "size": "B", "width": 32, "depth": 4, "heads": 2, "bottleneck": 24, "context_from": 1, "context_tokens": 2
        }  # fmt: skip
        settings = validate(PretrainSettings, {
            "curated": "runs/curate/x", "classes": 4, "network": network, "subspace": {"rank": 6, "kind": "random"},
            "optim": {"optimizer": optimizer}, "resources": {"zero_stage": zero_stage},
        })  # fmt: skip
        subspace = Subspace(torch.eye(settings.jit.patch_dim, 6), 1.0, LAYOUT, SrgbSpace(), {})
        average = {name: torch.randn_like(p) for name, p in PixelJiT(settings.jit, subspace).trainable().items()}
        subspace.save(tmp_path / SUBSPACE)
        save_file(average, tmp_path / "average.safetensors")
        (tmp_path / SUMMARY).write_text('{"size": [32, 32]}')
        files = {name: {"sha256": name} for name in (SUBSPACE, "average.safetensors")}
        manifest = {
            "step": "pretrain", "id": "x", "config": settings.model_dump(mode="json"), "files": files, "inputs": {},
            "metrics": {},
        }  # fmt: skip
        (tmp_path / "manifest.json").write_text(json.dumps(manifest))
        return Artifact(str(tmp_path), manifest), average

    return make


@pytest.mark.parametrize(("optimizer", "zero_stage"), [("adam8bit", 0), ("adam", 2), ("adam", 0)])
def test_every_optimizer_and_stage_is_loaded_and_evaluated(trained, optimizer, zero_stage):
    artifact, average = trained(optimizer, zero_stage)
    model = load_pretrained(artifact)
    assert all(torch.equal(p, average[name]) for name, p in model.trainable().items())
    assert read_class_model(artifact, None).parts["average"] == "average.safetensors"
