import json
import re

import pytest
import torch
from diffusers import QwenImagePipeline

from asymflow.models.qwen_image import BASE, FAMILY, lora_targets, network, read_token_geometry, run


def test_latents_are_packed_as_the_stock_pipeline_packs_them():
    latents = torch.randn(2, 16, 6, 4)
    assert torch.equal(FAMILY.backbone.pack(latents, 2), QwenImagePipeline._pack_latents(latents, 2, 16, 6, 4))


@pytest.mark.parametrize("layer", ["txt_mlp.net.2", "txt_mlp.net.0.proj", "attn.to_add_out"])
def test_lora_leaves_out_the_text_of_the_last_block_which_nothing_reads(layer):
    pattern = lora_targets({"num_layers": 3})
    assert [bool(re.fullmatch(pattern, f"transformer_blocks.{i}.{layer}")) for i in range(3)] == [True, True, False]


def test_lora_adapts_the_image_of_every_block():
    names = {layer.name for layer in network(BASE).linears if re.fullmatch(lora_targets(BASE), layer.name)}
    assert sum(".img_mlp." in name for name in names) == 2 * 60
    assert sum(name.endswith(".attn.to_out.0") for name in names) == 60


def test_tokens_fill_the_grid():
    with pytest.raises(ValueError, match="6 tokens do not fill a grid of 2 x 2"):
        run(None, torch.zeros(1, 6, 64), torch.ones(1), torch.zeros(1, 1, 8), (2, 2))


def test_the_geometry_needs_the_settings_of_the_autoencoder(tmp_path):
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae/config.json").write_text(json.dumps({"z_dim": 16}))
    with pytest.raises(ValueError, match="its vae/config.json lacks temperal_downsample"):
        read_token_geometry(tmp_path)
    (tmp_path / "vae/config.json").write_text(json.dumps({"z_dim": 16, "temperal_downsample": [False, True, True]}))
    assert read_token_geometry(tmp_path) == (16, 64)
