import copy

import pytest
import torch
from torch import nn

from asymflow.models.masters import MasterLinear, make_masters


def test_a_layer_without_a_master_is_refused():
    layers = nn.Sequential(nn.Linear(2, 2), nn.SiLU(), nn.LayerNorm(2, elementwise_affine=False))
    make_masters(layers)
    make_masters(layers)
    assert type(layers[0]) is MasterLinear
    with pytest.raises(TypeError, match="Conv1d"):
        make_masters(nn.Conv1d(1, 1, 1))


@pytest.mark.parametrize("layer", [nn.Linear(6, 6), nn.Linear(6, 6, bias=False), nn.RMSNorm(6)])
def test_products_have_the_type_of_the_input_and_gradients_that_of_the_weights(layer):
    x = torch.randn(3, 6).bfloat16()
    make_masters(layer)
    y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, copy.deepcopy(layer).bfloat16()(x), rtol=0, atol=0)
    y.sum().backward()
    assert layer.weight.grad.dtype == layer.weight.dtype == torch.float32
