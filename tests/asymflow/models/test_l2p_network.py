import pytest
import torch

from asymflow.models.flux2_backbone import FLUX2
from asymflow.models.geometry import KLEIN_9B
from asymflow.models.l2p import Detailer
from asymflow.models.l2p_network import detailer_channels, detailer_values_kept, shallow_layers, shallow_network


def test_channels_double_up_to_eightfold():
    assert detailer_channels(2, 3) == (3,)
    assert detailer_channels(32, 3) == (3, 6, 12, 24, 24)
    for side in (1, 12):
        with pytest.raises(ValueError, match=f"patches of {side} pixels; the detailer needs 2, 4, 8"):
            detailer_channels(side, 3)


def test_values_kept_for_the_backward_pass_are_those_that_torch_keeps():
    torch.manual_seed(0)
    model = Detailer(8, 24, 8)
    own, kept = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(torch.randn(1, 3, 64, 64), torch.randn(1, 24, 8, 8, requires_grad=True))
    found = sum(storage.nbytes() for storage in kept.values()) / 4 / 64
    assert found == pytest.approx(detailer_values_kept(8, 24, 8), rel=0.02)


def test_layers_of_the_outer_blocks_are_trained_and_others_are_not():
    pattern = shallow_layers(FLUX2, KLEIN_9B, 2)
    trained = (
        "transformer_blocks.0.attn.to_q",
        "transformer_blocks.1.ff.linear_in",
        "single_transformer_blocks.23.attn",
    )
    frozen = ("transformer_blocks.2.attn.to_q", "transformer_blocks.10.attn.to_q", "single_transformer_blocks.2.attn")
    assert all(map(pattern.fullmatch, trained))
    assert not any(map(pattern.fullmatch, frozen))
    network = shallow_network(FLUX2, KLEIN_9B, 16, 2, 64)
    names = {layer.name for layer in network.linears if layer.trained}
    assert {name.split(".")[0] for name in names} == {
        "x_embedder", "norm_out", "detailer", "transformer_blocks", "single_transformer_blocks"
    }  # fmt: skip
    assert "proj_out" not in {layer.name for layer in network.linears}
    with pytest.raises(ValueError, match="the transformer has 32 blocks; allowed at each end: 16"):
        shallow_layers(FLUX2, KLEIN_9B, 17)
