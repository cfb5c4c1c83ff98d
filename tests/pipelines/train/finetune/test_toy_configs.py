"""The toy versions of the shipped 9B configurations train: model, loss, optimizer and rates as shipped."""

import re
from pathlib import Path

import pytest
import torch

from asymflow.adapters import read_adapter
from asymflow.models.geometry import LORA_TARGETS
from pipelines.core import storage
from pipelines.core.config import load_config
from pipelines.core.step import run_step
from pipelines.data.basis.step import load_subspace
from pipelines.train.finetune.config import FinetuneSettings
from pipelines.train.finetune.model import build_model
from pipelines.train.finetune.step import STEP
from pipelines.train.metrics_log import MetricsLog

ROOT = Path(__file__).parents[4]
TWINS = ("", "_latent", "_ddt", "_l2p", "_fm", "_vr")
TERMS = {
    "": {"loss", "variance_reduced", "perceptual", "lambda", "omega"},
    "_vr": {"loss", "variance_reduced", "lambda", "omega"},
}


def shipped(name: str, *overrides: str) -> FinetuneSettings:
    return load_config(FinetuneSettings, str(ROOT / f"jobs/configs/finetune/{name}.yaml"), list(overrides))


@pytest.mark.parametrize("kind", TWINS)
def test_a_toy_configuration_differs_from_the_9b_one_in_size_only(kind):
    big, toy = shipped(f"klein_9b{kind}"), shipped(f"toy_klein{kind}")
    assert (toy.model, toy.loss.kind, toy.ddt.blocks) == (big.model, big.loss.kind, big.ddt.blocks)
    assert (toy.loss.granularity, toy.loss.kappa) == (big.loss.granularity, big.loss.kappa)
    assert (toy.loss.perceptual is None) == (big.loss.perceptual is None)
    assert (toy.optim.lr_proj_out is None) == (big.optim.lr_proj_out is None) == (kind in ("_ddt", "_l2p"))
    dropouts = [settings.lora.dropout for settings in (toy, big) if settings.lora]
    assert dropouts == ([] if kind == "_l2p" else [0.05, 0.05])
    assert toy.optim.betas == big.optim.betas == (0.9, 0.95)
    native = toy.validation.latent_shift
    assert (toy.time.shift == native) == (big.time.shift == 7.0) == (kind == "_latent")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("kind", TWINS)
def test_a_toy_configuration_trains(kind, tiny_workflow, tiny_base, tmp_path):
    made = {name: tiny_workflow[2][step].artifact for name, step in STEP.inputs.items()}
    few = ["optim.steps=4", "optim.batch=6", "optim.warmup_steps=1", "optim.cooldown_steps=0", "ema.start_step=1"]
    few += ["checkpoints.every=2", "validation.every=4", "validation.pictures=2", "validation.steps=2"]
    few += ["ddt.heads=2", "ddt.head_width=16"] if kind == "_ddt" else []
    places = [f"{name}={artifact.uri}" for name, artifact in made.items()]
    settings = shipped(f"toy_klein{kind}", *few, *places, f"base={tiny_base}", f"run.storage={tmp_path}")
    artifact = run_step(STEP, settings).artifact

    metrics_log = MetricsLog.from_json(storage.read_bytes(artifact.file("record.json")).decode())
    assert metrics_log.steps == [1, 2, 3, 4]
    assert not metrics_log.skipped
    assert metrics_log.curves.keys() - {"sigma"} == TERMS.get(kind, {"loss"})
    model = build_model(settings, load_subspace(made["basis"]))
    trained = {name.removeprefix("transformer.") for name in model.trainable()}
    whole = {name.split(".")[0] for name in trained if ".lora_" not in name}
    blocks = {"transformer_blocks", "single_transformer_blocks"} if kind == "_l2p" else set()
    last = {"_ddt": "head", "_l2p": "detailer"}.get(kind, "proj_out")
    assert whole == {"x_embedder", "norm_out", last, *blocks}

    adapted = {name.partition(".lora_")[0] for name in trained if ".lora_" in name}
    assert len(adapted) == (0 if kind == "_l2p" else 4 + 1 + 2)
    assert all(re.fullmatch(LORA_TARGETS, name) for name in adapted)
    tensors, config = read_adapter(Path(artifact.file("adapter")))
    assert len(tensors) == len(trained) + (0 if kind == "_latent" else 2)
    fresh = {name: tensor for name, tensor in tensors.items() if ".lora_B." in name}
    assert all(tensor.any() for tensor in fresh.values()) or kind == "_ddt"  # LoRA's B is initialized to zero
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
