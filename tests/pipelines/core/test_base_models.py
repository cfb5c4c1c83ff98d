import json
import shutil

import pytest
import torch

from pipelines.core.base_models import check_base, check_gguf, check_unquantized, load_image_encoder, load_text_encoder
from pipelines.core.config import ConfigError


def test_a_whole_folder_passes(tiny_base):
    check_base(str(tiny_base), ("transformer",), images=True, text=True)


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "tokenizer"])
def test_a_missing_part_is_named(tiny_base, tmp_path, part):
    for name in {"transformer", "vae", "text_encoder", "tokenizer"} - {part}:
        (tmp_path / name).mkdir()
    shutil.copy(tiny_base / "model_index.json", tmp_path)
    with pytest.raises(ConfigError, match=f"base='{tmp_path}': it has no '{part}' folder"):
        check_base(str(tmp_path), ("transformer",), images=True, text=True)


def test_an_unknown_family_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"base='.*': it has no model_index.json.*known: Flux2KleinPipeline"):
        check_base(str(tmp_path))
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "SomePipeline"}))
    with pytest.raises(ConfigError, match=r"base='.*': .*'SomePipeline'; known: Flux2KleinPipeline"):
        check_base(str(tmp_path))


def test_a_gguf_base_is_trained_on_unsharded_with_checkpointing_alone(tiny_base, tmp_path):
    check_gguf(str(tiny_base), "nf4", 3, False)
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "base.gguf").touch()
    check_gguf(str(tmp_path), None, 2, True)
    for settings, message in [
        (("nf4", 0, True), "^base_quantization=nf4: .*base.gguf is quantized; use base_quantization=null"),
        ((None, 3, True), "^resources.zero_stage=3: .*base.gguf; use 0, 1 or 2"),
        ((None, 0, False), "^resources.gradient_checkpointing=false: .* use true"),
    ]:
        with pytest.raises(ConfigError, match=message):
            check_gguf(str(tmp_path), *settings)
    (tmp_path / "transformer" / "another.gguf").touch()
    with pytest.raises(ConfigError, match="several files of weights"):
        check_gguf(str(tmp_path), None, 0, True)


def test_a_base_that_is_stored_quantized_is_refused(tiny_base, tmp_path):
    check_unquantized(str(tiny_base), "give the full pipeline")
    config = json.loads((tiny_base / "transformer/config.json").read_text())
    (tmp_path / "transformer").mkdir()
    stored = {**config, "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    (tmp_path / "transformer/config.json").write_text(json.dumps(stored))
    with pytest.raises(ConfigError, match="its transformer is stored quantized; give the full pipeline"):
        check_unquantized(str(tmp_path), "give the full pipeline")


def test_processors_compute_in_float32(tiny_base):
    images, text = load_image_encoder(str(tiny_base), "cpu"), load_text_encoder(str(tiny_base), "cpu", 16)
    assert images.encode(torch.zeros(1, 3, 16, 16)).dtype == text.encode([""])[0].dtype == torch.float32
