import json
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from asymflow.adapters import (
    COMFYUI,
    CONFIG,
    WEIGHTS,
    SamplingDefaults,
    read_adapter,
    read_defaults,
    write_adapter,
    write_comfyui,
)
from asymflow.oklab import RELEASED
from asymflow.subspace import Subspace

TENSORS = {
    "norm_out.linear.weight": torch.arange(8.0).view(4, 2).half(),
    "time_guidance_embed.timestep_embedder.linear_1.lora_A.weight": torch.ones(2, 3).half(),
    "transformer_blocks.0.ff.linear_in.lora_B.weight": torch.randn(4, 2).half(),
    "proj_buffer": torch.eye(12)[:, :4].bfloat16(),
}
CONFIGURATION = {"_class_name": "AsymFlux2Transformer2DModel", "axes_dims_rope": [32, 32, 32, 32], "eps": 1e-6}
SUBSPACE = Subspace(torch.eye(12)[:, :4], 1.0, "channel_first", RELEASED)
DEFAULTS = SamplingDefaults(64, 96, 16, 2.0, 3.6, "none")


def test_both_formats_round_trip(tmp_path):
    write_adapter(tmp_path / "released", TENSORS, CONFIGURATION, SUBSPACE, DEFAULTS)
    write_comfyui(tmp_path / "comfyui", TENSORS, CONFIGURATION, SUBSPACE, DEFAULTS)
    for format in ("released", "comfyui"):
        tensors, config = read_adapter(tmp_path / format)
        assert config == CONFIGURATION
        assert tensors.keys() == TENSORS.keys()
        assert all(torch.equal(t, TENSORS[n]) and t.dtype == TENSORS[n].dtype for n, t in tensors.items())
        assert read_defaults(tmp_path / format) == DEFAULTS
    assert json.loads((tmp_path / "released" / CONFIG).read_text()) == CONFIGURATION  # and no key more
    assert load_file(tmp_path / "released" / WEIGHTS).keys() == TENSORS.keys()
    with safe_open(tmp_path / "comfyui" / COMFYUI, "pt") as file:
        assert float(file.metadata()["log_shift"]) == pytest.approx(math.log(3.6))


def test_defaults_without_metadata_are_the_released_models(tmp_path):
    write_adapter(tmp_path, TENSORS, CONFIGURATION, SUBSPACE)
    found = read_defaults(tmp_path)
    assert found == SamplingDefaults(1024, 1024, 32, 4.0, 17.0, "max_length")
    assert found.shift_at(1024, 1024) == 17
    assert found.shift_at(2048, 2048) == 34
    save_file(TENSORS, tmp_path / WEIGHTS, {"asymflow": json.dumps({"shift": 5.0, "of a newer version": 1})})
    assert read_defaults(tmp_path).shift == 5.0


@pytest.mark.parametrize("text", ["[1]", "{", '{"shift": -1}', '{"text_padding": "left"}', '{"height": "a"}'])
def test_bad_defaults_are_refused(tmp_path, text):
    save_file(TENSORS, tmp_path / WEIGHTS, {"asymflow": text})
    with pytest.raises(ValueError, match="cannot be read"):
        read_defaults(tmp_path)


def test_folders_without_an_adapter_are_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no adapter in"):
        read_adapter(tmp_path)
    with pytest.raises(ValueError, match="there is no adapter in"):
        read_defaults(tmp_path)
    write_comfyui(tmp_path, TENSORS, CONFIGURATION, SUBSPACE, DEFAULTS)
    save_file(TENSORS, tmp_path / COMFYUI)
    with pytest.raises(ValueError, match="cannot be read"):  # without its configuration
        read_adapter(tmp_path)
    (tmp_path / COMFYUI).write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="cannot be read"):
        read_adapter(tmp_path)
