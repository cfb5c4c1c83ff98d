import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from asymflow.adapters import SUBSPACE, read_adapter, read_defaults
from asymflow.subspace import Subspace
from pipelines.core.config import ConfigError
from pipelines.train.finetune.export_formats import PTH, check_comfyui, convert, stored_type

MODELS = Path(__file__).parents[4] / "models"
BASE, ADAPTER = str(MODELS / "toy_klein"), str(MODELS / "toy_asymflow")


def test_formats_are_converted_into_each_other(tmp_path):
    comfyui = convert(ADAPTER, "comfyui", str(tmp_path / "comfyui"))
    released = convert(comfyui, "released", str(tmp_path / "released"))
    (tensors, config), (again, config_again) = read_adapter(ADAPTER), read_adapter(released)
    assert config == config_again
    assert tensors.keys() == again.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())
    assert read_defaults(released) == read_defaults(ADAPTER)
    assert (Path(released) / PTH).is_file()
    subspaces = [Subspace.load(Path(folder) / SUBSPACE) for folder in (ADAPTER, released)]
    assert torch.equal(subspaces[0].A, subspaces[1].A)


def test_a_missing_base_is_named_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="base='absent': no such folder"):
        convert(ADAPTER, "merged", "out", "absent")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["AsymZImageTransformer2DModel", "L2pFlux2Transformer2DModelAdapter", None])
def test_comfyui_knows_the_names_of_flux2_with_lora_alone(name):
    check_comfyui({"_class_name": "AsymFlux2Transformer2DModel"})
    with pytest.raises(ConfigError, match=f"format=comfyui: not supported for a {name}; use format=released"):
        check_comfyui({"_class_name": name})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_type_of_a_base_is_read_from_its_file(tmp_path, dtype):
    (tmp_path / "transformer").mkdir()
    save_file({"w": torch.zeros(2, dtype=dtype)}, tmp_path / "transformer/model.safetensors")
    assert stored_type(str(tmp_path)) == dtype


def test_a_base_without_weights_or_of_another_type_is_refused(tmp_path):
    (tmp_path / "transformer").mkdir()
    with pytest.raises(ConfigError, match="its transformer has no safetensors file"):
        stored_type(str(tmp_path))
    save_file({"w": torch.zeros(2, dtype=torch.int8)}, tmp_path / "transformer/model.safetensors")
    with pytest.raises(ConfigError, match="its transformer is stored as I8; give the dtype to merge in"):
        stored_type(str(tmp_path))


@pytest.mark.parametrize(
    ("format", "file"),
    [
        ("fp8", "asymflow-fp8.safetensors"), ("gguf", "asymflow-Q4_0.gguf"),
        ("nf4", "transformer/diffusion_pytorch_model.safetensors"),
    ],
)  # fmt: skip
def test_quantized_formats_have_the_model_merged(tmp_path, format, file):
    out = Path(convert(ADAPTER, format, str(tmp_path / format), BASE, gguf="q4_0"))
    full = Path(BASE, "transformer", "diffusion_pytorch_model.safetensors").stat().st_size
    assert (out / file).stat().st_size < 0.6 * full
    config = json.loads((out / file).with_name("config.json").read_text())
    assert config["_class_name"] == "AsymFlux2Transformer2DModel"
    assert config["sampling"]["guidance_scale"] == 2.0
    assert ("quantization_config" in config) == (out / "model_index.json").is_file() == (format == "nf4")


def test_what_a_format_needs_is_named_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.train.config.PathFinder.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="^format=nf4: needs bitsandbytes"):
        convert(ADAPTER, "nf4", str(tmp_path / "out"), BASE)
    shutil.copytree(BASE, tmp_path / "base", ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "base" / "transformer" / "base.gguf").touch()
    with pytest.raises(ConfigError, match="^format=gguf: .* is quantized; give the full base to merge with"):
        convert(ADAPTER, "gguf", str(tmp_path / "out"), str(tmp_path / "base"))
    assert not (tmp_path / "out").exists()
