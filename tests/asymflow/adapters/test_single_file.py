"""GGUF and scaled float8 files: read by other readers tensor by tensor, and loaded by diffusers' own classes."""

import json

import gguf
import pytest
import torch
from diffusers.quantizers.bfl.utils import BFLFP8RLinear
from diffusers.quantizers.gguf.utils import GGUFLinear
from safetensors import safe_open
from toy_pipeline import ADAPTER, BASE, relative_error, samples

from asymflow.adapters import load_merged, load_single_file, write_fp8, write_gguf
from asymflow.adapters.original_names import to_original
from asymflow.adapters.single_file import FP8_MAX, GGUF_TYPES
from asymflow.diffusers_pipeline import AsymFlux2KleinPipeline
from asymflow.models.latent import load_transformer

KEPT = ("img_in.weight", "txt_in.weight", "final_layer.linear.weight", "final_layer.adaLN_modulation.1.weight")
STEPS = {"q8_0": 1 / 127, "q5_1": 1 / 31, "q5_0": 1 / 16, "q4_1": 1 / 15, "q4_0": 1 / 8}
"""Largest distance of neighboring values, over the block's largest magnitude, or its range for the types _1"""


@pytest.fixture(scope="module")
def merged():
    return load_merged(load_transformer(BASE, torch.float32), ADAPTER)[0]


@pytest.mark.parametrize("type", GGUF_TYPES)
def test_a_gguf_file_is_read_by_another_reader_tensor_by_tensor(tmp_path, merged, type):
    reader = gguf.GGUFReader(write_gguf(merged, tmp_path, type))
    assert reader.get_field("general.architecture").contents() == "flux"
    assert json.loads(reader.get_field("asymflow.asymflow").contents())["guidance_scale"] == 2.0
    expected = to_original(merged.state_dict())
    assert {tensor.name for tensor in reader.tensors} == expected.keys()
    for tensor in reader.tensors:
        weight = expected[tensor.name].float()
        found = torch.tensor(gguf.quants.dequantize(tensor.data, tensor.tensor_type)).reshape(weight.shape)
        if tensor.tensor_type.name in ("F32", "F16"):
            kind = torch.float32 if tensor.name in ("proj_buffer", "scale_buffer") else torch.float16
            assert torch.equal(found, weight.to(kind).float()), tensor.name
            continue
        assert tensor.tensor_type.name == type.upper()
        assert tensor.name not in KEPT
        blocks, error = weight.reshape(-1, 32), (found - weight).abs().reshape(-1, 32)
        scale = blocks.amax(1) - blocks.amin(1) if type.endswith("1") else blocks.abs().amax(1)
        # the scales are float16, and the value opposite to the largest of a block of type _0 may be cut by one step
        steps = 1.0 if type in ("q5_0", "q4_0") else 0.5
        assert (error <= (steps * STEPS[type] + 2e-3) * scale[:, None] + 1e-6).all(), tensor.name


@pytest.mark.parametrize(("type", "largest"), [("q8_0", 0.01), ("q5_0", 0.06), ("q4_1", 0.12)])
def test_diffusers_loads_a_gguf_file(tmp_path, merged, type, largest):
    model = load_single_file(write_gguf(merged, tmp_path, type), torch.float32)
    assert isinstance(model.transformer_blocks[0].attn.to_q, GGUFLinear)
    assert model.dtype == torch.float32
    assert torch.equal(model.proj_buffer, merged.proj_buffer)
    assert torch.equal(model.scale_buffer, merged.scale_buffer)
    assert model.config.sampling == merged.config.sampling
    assert 1e-4 < relative_error(model, merged) < largest


def test_a_float8_file_has_the_layout_that_comfyui_reads(tmp_path, merged):
    with safe_open(write_fp8(merged, tmp_path), framework="pt") as file:
        found, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()
    layers = json.loads(metadata["_quantization_metadata"])["layers"]
    assert float(metadata["sigma_min"]) == 1e-4
    for name, weight in to_original(merged.state_dict()).items():
        layer = name.removesuffix(".weight")
        if layer not in layers:
            kind = torch.float32 if name in ("proj_buffer", "scale_buffer") else torch.bfloat16
            assert torch.equal(found.pop(name), weight.to(kind)), name
            continue
        assert layers[layer] == {"format": "float8_e4m3fn"}
        assert name not in KEPT
        stored, scale = found.pop(name), found.pop(f"{layer}.weight_scale")
        assert stored.dtype == torch.float8_e4m3fn
        assert scale.dtype == torch.float32
        assert scale.shape == ()
        assert float(scale) == pytest.approx(float(weight.abs().max()) / FP8_MAX)
        # 3 bits of mantissa, and steps of 2^-9 near zero
        step = (weight.abs() * 2**-3).clamp_min(2**-9 * float(scale))
        assert ((stored.float() * scale - weight).abs() <= 0.501 * step).all(), name
    assert not found


def test_diffusers_loads_a_float8_file_and_samples_from_it(tmp_path, merged):
    model = load_single_file(write_fp8(merged, tmp_path), torch.float32)
    assert isinstance(model.transformer_blocks[0].attn.to_q, BFLFP8RLinear)
    assert model.dtype == torch.float32
    assert 1e-4 < relative_error(model, merged) < 0.04
    pipeline = AsymFlux2KleinPipeline.from_pretrained(BASE, transformer=model)
    exact = AsymFlux2KleinPipeline.from_pretrained(BASE, adapter=ADAPTER)
    difference = (samples(pipeline) - samples(exact)).abs().mean()
    assert pipeline.defaults == exact.defaults
    assert 0 < difference < 0.1
    with pytest.raises(ValueError, match="a pixel model already: leave out adapter"):
        AsymFlux2KleinPipeline.from_pretrained(BASE, transformer=model, adapter=ADAPTER)


def test_files_that_cannot_be_loaded_are_named(tmp_path, merged, tiny_transformer):
    with pytest.raises(ValueError, match="lacks absent.gguf and config.json; export the model"):
        load_single_file(tmp_path / "absent.gguf")
    file = write_gguf(merged, tmp_path)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="asymflow-Q8_0.gguf cannot be read"):
        load_single_file(file)
    (tmp_path / "other.safetensors").write_bytes(b"12345678")
    with pytest.raises(ValueError, match="other.safetensors cannot be read"):
        load_single_file(tmp_path / "other.safetensors")
