import copy

import pytest
import torch
from diffusers.models.normalization import RMSNorm
from torch import nn

from asymflow.models.mixed_precision import MasterLinear, use_master_weights


def test_a_layer_without_a_master_is_refused():
    layers = nn.Sequential(nn.Linear(2, 2), nn.SiLU(), nn.LayerNorm(2, elementwise_affine=False))
    use_master_weights(layers)
    use_master_weights(layers)
    assert type(layers[0]) is MasterLinear
    with pytest.raises(
        TypeError, match="Conv1d has parameters; master weights exist for Linear, RMSNorm, RMSNorm, Conv2d"
    ):
        use_master_weights(nn.Conv1d(1, 1, 1))


@pytest.mark.parametrize(
    "layer", [nn.Linear(6, 6), nn.Linear(6, 6, bias=False), nn.RMSNorm(6), nn.Conv2d(2, 3, 3), RMSNorm(6, 1e-6)]
)
def test_products_have_the_type_of_the_input_and_gradients_that_of_the_weights(layer):
    x = torch.randn(3, 2, 6, 6).bfloat16()
    use_master_weights(layer)
    y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, copy.deepcopy(layer).bfloat16()(x), rtol=0, atol=0)
    y.sum().backward()
    assert layer.weight.grad.dtype == layer.weight.dtype == torch.float32
