import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from asymflow.adapters import CONFIG, SUBSPACE, WEIGHTS, load_adapter, restore, save_adapter
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
    assert type(again) is cls
    assert not again.training
    torch.testing.assert_close(answer(again), answer(model), rtol=1e-5, atol=1e-5)


def test_a_latent_model_needs_a_given_subspace(make, tiny_transformer, tmp_path):
    save_adapter(make(LatentFlux2, {}), tmp_path)
    with pytest.raises(ValueError, match="for a latent model, which has no subspace: give one"):
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


def as_released(model, folder, dtype):
    """A folder as the published one: no subspace beside the file, its buffers in half precision."""
    save_adapter(model, folder)
    (folder / SUBSPACE).unlink()
    tensors = load_file(folder / WEIGHTS)
    tensors |= {"proj_buffer": model.A.to(dtype).contiguous(), "scale_buffer": torch.tensor(model.s).to(dtype)}
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("cls", "head"), [KINDS[0], KINDS[2]])
def test_a_folder_without_a_subspace_beside_it_comes_back(make, tiny_transformer, tmp_path, cls, head, dtype):
    """As the pipeline reads it: A is what the rounded buffer is nearest to."""
    model = make(cls, head)
    as_released(model, tmp_path, dtype)
    again = restore(tiny_transformer(96), tmp_path)
    assert (again.A - model.A).abs().max() < 5e-4
    assert again.s == pytest.approx(model.s, rel=4e-3)
    assert (answer(again) - answer(model)).norm() < 0.02 * answer(model).norm()
    load_adapter(again, tmp_path)  # and once more, on the basis that was made of it
    load_adapter(model, tmp_path)  # and on the exact one


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_finetune_continues_from_a_folder_without_a_subspace(make, tiny_transformer, tmp_path, dtype):
    as_released(make(PixelFlux2, {}), tmp_path / "published", dtype)
    model = restore(tiny_transformer(96), tmp_path / "published").train()
    before = {name: value.detach().clone() for name, value in model.trainable().items()}
    optimizer = torch.optim.SGD(model.trainable().values(), lr=1e-3)
    x_t, text = torch.randn(1, 3, 32, 32), torch.randn(1, 3, 96)
    model(x_t, torch.tensor([0.6]), text).square().mean().backward()
    optimizer.step()
    assert any(not torch.equal(value, before[name]) for name, value in model.trainable().items())
    save_adapter(model, tmp_path / "continued")
    again = restore(tiny_transformer(96), tmp_path / "continued")
    torch.testing.assert_close(answer(again), answer(model.eval()), rtol=1e-2, atol=1e-2)


def test_buffers_of_another_basis_or_scale_are_still_refused(make, tiny_transformer, tmp_path):
    model = make(PixelFlux2, {})
    as_released(model, tmp_path, torch.float16)
    tensors = load_file(tmp_path / WEIGHTS)
    for name, changed in {"proj_buffer": tensors["proj_buffer"].roll(1, 0), "scale_buffer": torch.tensor(2.42)}.items():
        save_file({**tensors, name: changed}, tmp_path / WEIGHTS, {"format": "pt"})
        with pytest.raises(ValueError, match=f"its {name} belongs to another basis than the model's"):
            load_adapter(model, tmp_path)
        make_subspace().save(tmp_path / SUBSPACE)
        with pytest.raises(ValueError, match=f"is not the one that the adapter was made with: {name} differs"):
            restore(tiny_transformer(96), tmp_path)
        (tmp_path / SUBSPACE).unlink()
