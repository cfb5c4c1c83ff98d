"""A base whose transformer is a GGUF file, against the same base with the rounded weights in full."""

import json
import shutil

import pytest
import torch
from diffusers.quantizers.gguf.utils import GGUFLinear
from gguf_files import rounded, write_base
from peft import LoraConfig
from toy_pipeline import ADAPTER, BASE, velocity
from trained_adapter import trained, velocities

from asymflow.adapters import attach, load_merged, merge, to_released
from asymflow.diffusers_pipeline import AsymFlux2KleinPipeline
from asymflow.models.gguf_base import find_gguf
from asymflow.models.latent import load_transformer
from asymflow.models.pixel import ATTACHED

FULL = {"x_embedder", "context_embedder", "norm_out.linear", "proj_out"}


@pytest.fixture
def folder(tmp_path, tiny_transformer):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "Flux2KleinPipeline"}))
    write_base(tiny_transformer(96, head_width=32), tmp_path / "transformer")
    return tmp_path


def test_the_blocks_stay_quantized_and_the_trained_layers_are_full(folder):
    transformer = load_transformer(folder, torch.float32)
    linears = {name: module for name, module in transformer.named_modules() if isinstance(module, torch.nn.Linear)}
    quantized = {name for name, module in linears.items() if isinstance(module, GGUFLinear)}
    assert not quantized & FULL
    assert {name for name in linears if "transformer_blocks" in name} <= quantized
    assert all(type(transformer.get_submodule(name).weight) is torch.nn.Parameter for name in FULL)


def test_an_adapter_is_attached_with_another_lora_on_top(folder, tiny_transformer):
    model = trained(tiny_transformer(96, head_width=32))
    tensors = to_released(model.trainable(), model.subspace)
    attached = attach(load_transformer(folder, torch.float32), tensors, model.subspace)
    assert isinstance(attached.transformer_blocks[0].attn.to_q, GGUFLinear)
    assert attached.dtype == torch.float32
    full = merge(rounded(tiny_transformer(96, head_width=32)), tensors, model.subspace)
    (_, expected), (_, found) = velocities(model, full), velocities(model, attached)
    assert (found - expected).abs().max() < 2e-5 * expected.abs().max()

    for one in (attached, full):
        torch.manual_seed(0)
        one.add_adapter(LoraConfig(r=2, target_modules=r".*attn\.to_q", init_lora_weights=False), adapter_name="style")
    attached.set_adapters([ATTACHED, "style"])
    (_, styled), (_, found) = velocities(model, full), velocities(model, attached)
    assert (found - styled).abs().max() < 2e-5 * styled.abs().max() < (styled - expected).abs().max()


def test_a_pipeline_of_a_gguf_base_and_an_adapter(tmp_path):
    shutil.copytree(BASE, tmp_path / "base", ignore=shutil.ignore_patterns("*.safetensors"))
    for part in ("text_encoder", "vae"):
        shutil.copytree(BASE / part, tmp_path / "base" / part, dirs_exist_ok=True)
    write_base(load_transformer(BASE, torch.float32), tmp_path / "base" / "transformer")
    pipeline = AsymFlux2KleinPipeline.from_pretrained(tmp_path / "base", adapter=ADAPTER, merge=False)
    full, _ = load_merged(rounded(load_transformer(BASE, torch.float32)), ADAPTER)
    expected = velocity(full)
    # diffusers multiplies integers and scales in float16
    assert (velocity(pipeline.transformer) - expected).abs().max() < 1e-3 * expected.abs().max()
    with pytest.raises(ValueError, match="it is quantized, and an adapter is merged into full weights: attach it"):
        AsymFlux2KleinPipeline.from_pretrained(tmp_path / "base", adapter=ADAPTER)


def test_files_that_do_not_fit_are_refused(folder, tmp_path):
    file = find_gguf(folder)
    assert file == folder / "transformer" / "base.gguf"
    assert find_gguf(BASE) is None
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(ValueError, match="base.gguf cannot be read"):
        load_transformer(folder, torch.float32)
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").touch()
    with pytest.raises(ValueError, match="several files of weights, base.gguf, .*; keep one GGUF file, or none"):
        find_gguf(folder)
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "ZImagePipeline"}))
    with pytest.raises(ValueError, match="ZImageTransformer2DModel; only FLUX.2's are supported"):
        load_transformer(folder, torch.float32)
