"""Artifact of a tiny pretraining with random values, without the training."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from asymflow.models.jit import LAYOUT, PixelJiT
from asymflow.srgb import SrgbSpace
from asymflow.subspace import Subspace
from pipelines.core.artifacts import Artifact
from pipelines.core.config import validate
from pipelines.train.metrics_log import AVERAGE
from pipelines.train.pretrain.config import PretrainSettings
from pipelines.train.pretrain.model import SUBSPACE, SUMMARY

NETWORK = {
    "size": "B", "width": 32, "depth": 4, "heads": 2, "bottleneck": 24, "context_from": 1, "context_tokens": 2
}  # fmt: skip


def write_pretrained(folder: Path, **sections) -> tuple[Artifact, dict[str, Tensor]]:
    """Write the artifact of a training with these settings on images of 32 x 32; return it and its average."""
    tree = {"curated": "runs/curate/x", "classes": 4, "network": NETWORK, "subspace": {"rank": 6, "kind": "random"}}
    settings = validate(PretrainSettings, {**tree, **sections})
    subspace = Subspace(torch.eye(settings.jit.patch_dim, 6), 1.0, LAYOUT, SrgbSpace(), {})
    generator, trainable = torch.Generator().manual_seed(0), PixelJiT(settings.jit, subspace).trainable()
    # small values: with greater ones every sampled pixel is -1 or 1, whatever its class and seed
    average = {name: 0.1 * torch.randn(p.shape, generator=generator) for name, p in trainable.items()}
    subspace.save(folder / SUBSPACE)
    save_file(average, folder / AVERAGE)
    (folder / SUMMARY).write_text('{"size": [32, 32]}')
    files = {name: {"sha256": name} for name in (SUBSPACE, AVERAGE)}
    manifest = {
        "step": "pretrain", "id": "x", "config": settings.model_dump(mode="json"), "files": files, "inputs": {},
        "metrics": {},
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return Artifact(str(folder), manifest), average
