"""A merged model in NF4: what it computes, and its folder, read by diffusers' own class."""

import pytest
import torch
from diffusers.quantizers.bitsandbytes import BnB4BitDiffusersQuantizer
from toy_pipeline import ADAPTER, BASE, relative_error, velocity

from asymflow.adapters import load_merged
from asymflow.adapters.nf4 import quantize_nf4
from asymflow.models.latent import load_transformer
from asymflow.models.pixel import AsymFlux2Transformer2DModel
from asymflow.models.quantized import import_bitsandbytes


@pytest.fixture
def pair():
    made = [load_merged(load_transformer(BASE, torch.float32), ADAPTER)[0] for _ in range(2)]
    quantize_nf4(made[1])
    return made


def test_diffusers_reads_the_folder(tmp_path, pair, monkeypatch):
    merged, quantized = pair
    linear4bit = import_bitsandbytes().nn.Linear4bit
    layers = {name for name, module in quantized.named_modules() if isinstance(module, linear4bit)}
    assert not layers & {"x_embedder", "context_embedder", "norm_out.linear", "proj_out"}
    assert 1e-3 < relative_error(quantized, merged) < 0.12
    quantized.save_pretrained(tmp_path)
    # diffusers refuses bitsandbytes without an accelerator, which the package itself does not need
    monkeypatch.setattr(BnB4BitDiffusersQuantizer, "validate_environment", lambda self, *_, **__: None)
    # it was hidden when diffusers was imported, see tests/conftest.py
    monkeypatch.setattr("diffusers.quantizers.bitsandbytes.utils.bnb", import_bitsandbytes(), raising=False)
    found = AsymFlux2Transformer2DModel.from_pretrained(tmp_path, torch_dtype=torch.float32, device_map={"": "cpu"})
    assert {name for name, module in found.named_modules() if isinstance(module, linear4bit)} == layers
    assert found.dtype == torch.float32
    assert torch.equal(found.proj_buffer, merged.proj_buffer)
    assert found.config.sampling == merged.config.sampling
    stored = found.state_dict()
    assert all(torch.equal(stored[name], value) for name, value in quantized.state_dict().items())
    # on some CPUs bitsandbytes repacks the weights of its own layers, with scales rounded once more
    expected = velocity(quantized)
    assert (velocity(found) - expected).norm() <= 0.02 * expected.norm()
