import torch
from diffusers import Flux2KleinPipeline, Flux2Transformer2DModel

from asymflow.models.flux2_backbone import FLUX2
from asymflow.models.geometry import KLEIN_4B


def test_the_layers_that_the_lift_replaces_are_those_of_the_class():
    with torch.device("meta"):
        transformer = Flux2Transformer2DModel(**KLEIN_4B)
    first, last, text = (transformer.get_submodule(name) for name in (FLUX2.first, FLUX2.last, FLUX2.text_input))
    assert first.in_features == last.out_features == FLUX2.token_width(KLEIN_4B) == 128
    assert text.in_features == KLEIN_4B["joint_attention_dim"]
    assert transformer.get_submodule(FLUX2.last_norm).linear.out_features == 2 * first.out_features


def test_latents_are_packed_as_the_stock_pipeline_packs_them():
    latents = torch.randn(2, 32, 6, 4)
    expected = Flux2KleinPipeline._pack_latents(Flux2KleinPipeline._patchify_latents(latents))
    assert torch.equal(FLUX2.pack(latents, 2), expected)
