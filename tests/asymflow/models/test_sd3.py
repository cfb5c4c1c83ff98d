import re

import pytest
import torch
from diffusers import SD3Transformer2DModel

from asymflow.models.latent import published_model
from asymflow.models.network import BlockMemory
from asymflow.models.sd3 import LARGE, LORA_TARGETS, MEDIUM, block_memory, network, prepare, run
from asymflow.models.shifted_latents import pack, unpack

TINY = {
    "sample_size": 8, "patch_size": 2, "in_channels": 4, "num_layers": 2, "attention_head_dim": 8,
    "num_attention_heads": 2, "joint_attention_dim": 24, "caption_projection_dim": 16, "pooled_projection_dim": 20,
    "out_channels": 4, "pos_embed_max_size": 6, "dual_attention_layers": (0,), "qk_norm": "rms_norm",
}  # fmt: skip


@pytest.fixture
def transformer():
    torch.manual_seed(0)
    return SD3Transformer2DModel(**TINY).eval()


def test_the_first_token_of_a_caption_is_its_pooled_embedding(transformer):
    latents, text, sigma = torch.randn(2, 4, 4, 6), torch.randn(2, 5, 24), torch.tensor([0.2, 0.7])
    with torch.no_grad():
        expected = transformer(latents, text[:, 1:], text[:, 0, :20], 1000 * sigma).sample
        found = run(prepare(transformer), pack(latents, 2), sigma, text, (2, 3))
    torch.testing.assert_close(unpack(found, (2, 3), 2), expected)


def test_preparing_twice_changes_nothing_more(transformer):
    first = prepare(transformer).pos_embed
    assert prepare(transformer) is transformer
    assert transformer.pos_embed is first


def test_tokens_fill_the_grid():
    with pytest.raises(ValueError, match="6 tokens do not fill a grid of 2 x 2"):
        run(None, torch.zeros(1, 6, 64), torch.ones(1), torch.zeros(1, 1, 8), (2, 2))


@pytest.mark.parametrize(("config", "second"), [(MEDIUM, 13), (LARGE, 0)])
def test_lora_adapts_the_outputs_of_both_attentions_and_the_feed_forwards(config, second):
    names = [layer.name for layer in network(config).linears if re.fullmatch(LORA_TARGETS, layer.name)]
    blocks = config["num_layers"]
    assert sum(name.endswith(".attn.to_out.0") for name in names) == blocks
    assert sum(name.endswith(".attn2.to_out.0") for name in names) == second
    assert sum(name.endswith((".to_add_out", ".ff_context.net.2")) for name in names) == 2 * (blocks - 1)
    assert sum(".ff." in name for name in names) == 2 * blocks


def test_blocks_with_a_second_attention_keep_more():
    joint, dual = block_memory(MEDIUM, lora=False, dropout=False)
    assert (joint.blocks, dual.blocks) == (11, 13)
    assert dual.kept == joint.kept + 6 * joint.width
    assert block_memory(LARGE, lora=False, dropout=False)[1] == BlockMemory(0, "both", 2432, 0)


def test_published_names_have_their_settings():
    assert published_model("/models/stable-diffusion-3.5-large").config["num_layers"] == 38
