import re

import pytest
import torch
from diffusers import Flux3Transformer2DModel

from asymflow.models.flux3 import BASE, LORA_TARGETS, block_memory, network, prepare, run
from asymflow.models.network import count_flops

TINY = {
    "in_channels": 8, "cond_in_channels": 8, "num_layers": 2, "num_single_layers": 1, "attention_head_dim": 16,
    "num_attention_heads": 2, "joint_attention_dim": 24, "timestep_channels": 16, "axes_dims_rope": (4, 4, 4, 4),
}  # fmt: skip


def test_without_the_modules_of_reference_images_the_output_is_the_same():
    torch.manual_seed(0)
    transformer = Flux3Transformer2DModel(**TINY).eval()
    tokens, text, sigma = torch.randn(2, 6, 8), torch.randn(2, 5, 24), torch.tensor([0.2, 0.7])
    with torch.no_grad():
        expected = run(transformer, tokens, sigma, text, (2, 3))
        prepared = prepare(prepare(transformer))
        assert torch.equal(run(prepared, tokens, sigma, text, (2, 3)), expected)
    assert prepared is transformer
    assert not any("image_cond" in name for name in transformer.state_dict())


def test_a_distilled_transformer_is_refused():
    with torch.device("meta"):
        distilled = Flux3Transformer2DModel(**TINY, flow_map=True)
    with pytest.raises(ValueError, match="step-distilled"):
        prepare(distilled)


def test_tokens_fill_the_grid():
    with pytest.raises(ValueError, match="6 tokens do not fill a grid of 2 x 2"):
        run(None, torch.zeros(1, 6, 64), torch.ones(1), torch.zeros(1, 1, 8), (2, 2))


def test_lora_adapts_layers_of_all_blocks_by_their_roles():
    names = [layer.name for layer in network(BASE).linears if re.fullmatch(LORA_TARGETS, layer.name)]
    assert sum(".ff.linear_in" in name for name in names) == 2 * 5
    assert sum(name.endswith(".ff.linear_out") for name in names) == 2 * 5 + 28
    assert sum(name.endswith(".attn.to_out.0") for name in names) == 28
    assert len(names) == 20 + 2 * 28 + 2


def test_blocks_of_the_text_keep_nothing_without_lora():
    image, text, _ = block_memory(BASE, lora=False, dropout=False)
    assert text.kept == 0 < image.kept
    image, text, _ = block_memory(BASE, lora=True, dropout=False)
    assert text.kept == image.kept


def test_checkpointing_repeats_the_blocks_of_all_three_kinds():
    layers = network(BASE).linears
    blocks = [layer for layer in layers if "blocks" in layer.name]
    tokens = {"image": 7, "text": 5, "both": 12}
    attention = sum(4 * 3072 * tokens[layer.stream] ** 2 for layer in network(BASE).attentions)
    expected = sum(2 * layer.inputs * layer.outputs * tokens[layer.stream] for layer in blocks) + attention
    assert count_flops(network(BASE), 7, 5).recomputed == expected
