from dataclasses import dataclass

import pytest
import torch

from pipelines.train.task import Batch


@dataclass
class Labelled(Batch):
    labels: torch.Tensor


def batch_of(cls, **more):
    return cls(
        images=torch.zeros(2, 3, 4, 4), noise=torch.ones(2, 3, 4, 4), sigma=torch.tensor([0.1, 0.9]),
        weight=torch.tensor([1.0, 0.0]), keys=["a", ""], key_sums=torch.tensor([7.0, 0.0]).double(), **more,
    )  # fmt: skip


def test_inputs_are_the_arguments_of_an_objective():
    batch = batch_of(Batch)
    assert batch.inputs() == {name: getattr(batch, name) for name in ("images", "noise", "sigma", "weight")}


def test_a_subclass_goes_to_a_device_whole():
    there = batch_of(Labelled, labels=torch.tensor([0, 3])).to(torch.device("meta"))
    assert isinstance(there, Labelled)
    assert there.keys == ["a", ""]
    assert {t.device.type for t in vars(there).values() if isinstance(t, torch.Tensor)} == {"meta"}
    assert there.key_sums.dtype == torch.float64


def test_all_tensors_of_a_subclass_are_pinned(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor + 1)  # pinning itself needs a GPU
    batch = batch_of(Labelled, labels=torch.tensor([0, 3]))
    pinned = batch.pin_memory()
    assert isinstance(pinned, Labelled)
    assert pinned.keys == batch.keys
    for name, tensor in vars(batch).items():
        assert name == "keys" or torch.equal(getattr(pinned, name), tensor + 1)


def test_tokens_are_the_subclasses():
    with pytest.raises(NotImplementedError):
        _ = batch_of(Batch).tokens
