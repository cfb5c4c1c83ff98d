import pytest
import torch

from asymflow.models.cells import pack_latents, unpack_latents


def test_latents_pack_as_flux2_packs_them():
    from diffusers import Flux2KleinPipeline

    latents = torch.randn(2, 32, 6, 4)
    packed = Flux2KleinPipeline._pack_latents(Flux2KleinPipeline._patchify_latents(latents))
    assert torch.equal(pack_latents(latents), packed)
    assert torch.equal(unpack_latents(packed, (3, 2)), latents)


@pytest.mark.parametrize("side", [1, 2, 3])
def test_unpacking_undoes_packing(side):
    latents = torch.randn(2, 5, 2 * side, 4 * side)
    tokens = pack_latents(latents, side)
    assert tokens.shape == (2, 8, side**2 * 5)
    assert torch.equal(unpack_latents(tokens, (2, 4), side), latents)
