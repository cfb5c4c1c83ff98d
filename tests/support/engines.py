"""Steps of DeepSpeed's engine on a tiny FLUX.2, and comparison of its state."""

from dataclasses import replace

import torch

from pipelines.train.engine import backward_and_step
from pipelines.train.finetune.batches import Batch
from pipelines.train.state import copy_to_cpu


def batch(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        images=torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1,
        z_0=torch.randn(2, 4, 128, generator=generator),
        text=torch.randn(2, 3, 8, generator=generator),
        text_mask=torch.ones(2, 3).bool(),
        noise=torch.randn(2, 3, 32, 32, generator=generator),
        sigma=torch.tensor([0.3, 0.8]),
        weight=torch.ones(2),
        keys=["a", "b"],
        key_sums=torch.ones(2).double(),
    )


def poisoned(value: float) -> Batch:
    good = batch(99)
    images = good.images.clone()
    images[1, 0, 3, 3] = value
    return replace(good, images=images)


def train(engine, optimizer, batches, rate: float = 1e-3) -> list[float]:
    losses = []
    for micro_batches in batches:
        for group in optimizer.param_groups:
            group["lr"] = rate
        losses.append(sum(float(part["loss"].mean()) for part in backward_and_step(engine, micro_batches)))
    return losses


def copies(state) -> tuple[dict, dict]:
    return copy_to_cpu(state.values()), {kind: copy_to_cpu(tensors) for kind, tensors in state.moments().items()}


def assert_equal(ours: dict, theirs: dict) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=0)
