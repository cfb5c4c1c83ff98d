import json

import pytest
import torch

from asymflow.adapters import CONFIG, SUBSPACE, restore, save_adapter
from asymflow.models.ddt import DdtFlux2
from asymflow.models.flux2 import LatentFlux2, PixelFlux2
from asymflow.oklab import RELEASED
from asymflow.subspace import Subspace

KINDS = [(PixelFlux2, {}), (LatentFlux2, {}), (DdtFlux2, {"blocks": 1, "heads": 2, "head_width": 24})]


def make_subspace(seed=0):
    A = torch.linalg.qr(torch.randn(768, 128, generator=torch.Generator().manual_seed(seed))).Q
    return Subspace(A, 2.4, "channel_first", RELEASED, {"method": "random"})


@pytest.fixture
def make(tiny_transformer):
    """Call with a class: a tiny model whose trained values are random, and small enough for float16."""

    def make(cls, head, lora=True):
        model = cls.from_latent(tiny_transformer(96), make_subspace(), **head)
        if lora:
            model.add_lora(4, 4, dropout=0.0)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.trainable().values():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator)).copy_(parameter.half().float())
        return model.eval()

    return make


def answer(model):
    generator = torch.Generator().manual_seed(2)
    shape = (1, 4, 128) if isinstance(model, LatentFlux2) else (1, 3, 32, 32)
    x_t, text = torch.randn(shape, generator=generator), torch.randn(1, 3, 96, generator=generator)
    with torch.no_grad():
        return model(x_t, torch.tensor([0.6]), text)


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize(("cls", "head"), KINDS)
def test_a_model_of_any_kind_comes_back_from_its_folder(make, tiny_transformer, tmp_path, cls, head, lora):
    model = make(cls, head, lora)
    save_adapter(model, tmp_path)
    again = restore(tiny_transformer(96), tmp_path, make_subspace() if cls is LatentFlux2 else None)
    assert type(again) is cls and not again.training
    torch.testing.assert_close(answer(again), answer(model), rtol=1e-5, atol=1e-5)


def test_a_latent_model_needs_to_be_told_the_subspace(make, tiny_transformer, tmp_path):
    save_adapter(make(LatentFlux2, {}), tmp_path)
    with pytest.raises(ValueError, match="of a latent model, which has no subspace: give one"):
        restore(tiny_transformer(96), tmp_path)


def test_files_of_another_class_or_another_basis(make, tiny_transformer, tmp_path):
    save_adapter(make(PixelFlux2, {}), tmp_path)
    make_subspace(seed=5).save(tmp_path / SUBSPACE)
    with pytest.raises(ValueError, match="subspace"):
        restore(tiny_transformer(96), tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps({**config, "_class_name": "SomethingElse"}))
    with pytest.raises(ValueError, match="names 'SomethingElse'; known: AsymFlux2Transformer2DModel"):
        restore(tiny_transformer(96), tmp_path)
