"""The published checkpoints' names, converted back by diffusers."""

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_flux2_transformer_checkpoint_to_diffusers
from trained_adapter import make_subspace

from asymflow.adapters.original_names import to_original
from asymflow.models.pixel import AsymFlux2Transformer2DModel


def test_diffusers_converts_the_names_back(tiny_transformer):
    state = AsymFlux2Transformer2DModel.from_latent(tiny_transformer(96), make_subspace()).state_dict()
    original = to_original(state)
    assert original["img_in.weight"].shape[1] == 768
    assert "double_blocks.0.img_attn.qkv.weight" in original
    assert not any(name.startswith(("transformer_blocks", "single_transformer_blocks")) for name in original)
    back = convert_flux2_transformer_checkpoint_to_diffusers(dict(original))
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize(
    "name", ["transformer_blocks.0.attn.to_out.0.lora_A.asymflow.weight", "vae.weight", "proj_out.bias"]
)
def test_other_weights_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} is not a weight of FLUX.2"):
        to_original({name: torch.zeros(2)})
