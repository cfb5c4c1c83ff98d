"""Unmerged against merged: one velocity, to rounding."""

import pytest
import torch
from peft.import_utils import is_bnb_4bit_available, is_bnb_available
from safetensors.torch import load_file, save_file
from trained_adapter import trained, velocities

from asymflow.adapters import WEIGHTS, attach, load_attached, load_merged, merge, save_adapter, to_released
from asymflow.models.pixel import ATTACHED
from asymflow.models.quantized import quantize_linears


@pytest.mark.parametrize(("rank", "alpha"), [(4, None), (4, 8), (0, None)])
def test_an_attached_adapter_gives_the_velocity_of_the_merged_one(tmp_path, tiny_transformer, rank, alpha):
    model = trained(tiny_transformer(96), rank=rank, alpha=alpha)
    save_adapter(model, tmp_path)
    base = tiny_transformer(96)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    attached, subspace = load_attached(base, tmp_path)
    expected, found = velocities(model, attached)
    _, merged = velocities(model, load_merged(tiny_transformer(96), tmp_path)[0])
    largest = expected.abs().max()
    assert (found - expected).abs().max() < 2e-5 * largest
    assert (found - merged).abs().max() < 2e-5 * largest
    assert subspace.layout == "channel_first"
    assert torch.equal(attached.proj_buffer, subspace.A)
    left = {name.replace(".base_layer", ""): value for name, value in attached.state_dict().items()}
    changed = ("x_embedder.weight", "norm_out.linear.weight", "proj_out.weight")
    assert all(torch.equal(left[name], value) for name, value in before.items() if name not in changed)


def test_lora_stays_lora_and_can_be_switched_off(tiny_transformer):
    model = trained(tiny_transformer(96))
    tensors = to_released(model.trainable(), model.subspace)
    attached = attach(tiny_transformer(96), tensors, model.subspace)
    own = dict(attached.named_parameters())
    layers = {name.rpartition(".lora_")[0] for name in tensors if ".lora_" in name}
    assert layers
    assert all(
        torch.equal(own[f"{layer}.lora_{half}.{ATTACHED}.weight"], tensors[f"{layer}.lora_{half}.weight"].float())
        for layer in layers
        for half in "AB"
    )
    assert {name.rpartition(".lora_")[0] for name in own if ".lora_" in name} == layers
    assert not any(parameter.requires_grad for name, parameter in own.items() if ".lora_" in name)
    expected, found = velocities(model, attached)
    attached.disable_adapters()
    without = {name: tensor for name, tensor in tensors.items() if ".lora_" not in name}
    _, off = velocities(model, attached)
    _, bare = velocities(model, merge(tiny_transformer(96), without, model.subspace))
    assert (off - bare).abs().max() < 2e-5 * bare.abs().max() < (found - bare).abs().max()


def test_a_half_precision_base_keeps_its_type_and_the_basis_in_float32(tiny_transformer):
    model = trained(tiny_transformer(96))
    tensors = to_released(model.trainable(), model.subspace)
    attached = attach(tiny_transformer(96).bfloat16(), tensors, model.subspace)
    assert attached.dtype == torch.bfloat16
    assert attached.proj_buffer.dtype == torch.float32
    kinds = {parameter.dtype for parameter in attached.parameters()}
    assert kinds == {torch.bfloat16}
    expected, found = velocities(model, attached)
    assert (found - expected).abs().max() < 0.1 * expected.abs().max()


def test_a_base_stored_in_eight_bits_has_the_adapter_beside_it(tiny_transformer):
    model = trained(tiny_transformer(96))
    tensors = to_released(model.trainable(), model.subspace)
    base, rounded = tiny_transformer(96), tiny_transformer(96)
    base.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    stored = {name: value.float() for name, value in base.state_dict().items()}
    rounded.load_state_dict(stored)
    attached = attach(base, tensors, model.subspace)
    weight = attached.transformer_blocks[0].attn.to_q.weight
    assert weight.dtype == torch.float8_e4m3fn
    assert attached.dtype == torch.float32
    expected, found = velocities(model, merge(rounded, tensors, model.subspace)), velocities(model, attached)
    assert (found[1] - expected[1]).abs().max() < 2e-5 * expected[1].abs().max()


@pytest.mark.parametrize("by_diffusers", [False, True])
def test_a_base_in_nf4_has_the_adapter_beside_it(tiny_transformer, by_diffusers):
    """diffusers quantizes every linear layer, also those that the adapter replaces, and marks the model for peft."""
    model, base = (trained(tiny_transformer(96, head_width=32)), tiny_transformer(96, head_width=32))
    names = [name.removesuffix(".base_layer") for name in model.frozen_linears()]
    if by_diffusers:
        names += ["x_embedder", "norm_out.linear", "proj_out"]
        base.is_loaded_in_4bit = True
        for available in (is_bnb_available, is_bnb_4bit_available):
            available.cache_clear()
    quantize_linears(base, names)
    tensors = to_released(model.trainable(), model.subspace)
    attached = attach(base, tensors, model.subspace)
    block = attached.single_transformer_blocks[0].attn
    assert block.to_qkv_mlp_proj.weight.dtype == torch.uint8
    assert attached.dtype == torch.float32
    assert type(block.to_out).__name__ == ("Linear4bit" if by_diffusers else "Linear")
    exact, _ = velocities(model, attached)
    model.quantize_base()
    expected, found = velocities(model, attached)
    assert (found - expected).abs().max() < 2e-5 * expected.abs().max()
    assert (found - exact).abs().max() > 1e-3 * exact.abs().max()


def test_a_damaged_adapter_is_refused_and_changes_nothing(tmp_path, tiny_transformer):
    save_adapter(trained(tiny_transformer(96)), tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    del tensors["proj_out.weight"]
    save_file(tensors, tmp_path / WEIGHTS)
    base = tiny_transformer(96)
    names = set(base.state_dict())
    with pytest.raises(ValueError, match="does not fit the base: 1 tensors are missing: proj_out.weight"):
        load_attached(base, tmp_path)
    assert set(base.state_dict()) == names


def test_a_model_with_an_attached_adapter_is_not_saved(tmp_path, tiny_transformer):
    model = trained(tiny_transformer(96))
    attached = attach(tiny_transformer(96), to_released(model.trainable(), model.subspace), model.subspace)
    with pytest.raises(ValueError, match="is not merged.*load the adapter with merge=True"):
        attached.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
