from dataclasses import replace

import pytest
import torch

from asymflow.models.jit import JiT
from asymflow.models.jit_config import SIZES, JiTConfig

TINY = JiTConfig(
    width=24, depth=4, heads=2, bottleneck=20, context_from=1, context_tokens=3, patch_size=4, classes=5
)  # fmt: skip


@pytest.mark.parametrize(("size", "millions"), [("B", 131), ("L", 459), ("H", 953), ("G", 2007)])
def test_published_sizes_have_the_published_parameters(size, millions):
    with torch.device("meta"):
        network = JiT(SIZES[size])
    assert round(sum(p.numel() for p in network.parameters()) / 1e6) == millions


@pytest.mark.parametrize("shapes", [{"heads": 5}, {"heads": 12}, {"context_from": 9}])
def test_shapes_that_do_not_fit_are_refused(shapes):
    with pytest.raises(ValueError, match="multiple of 4|context_from"):
        JiTConfig(**{**vars(TINY), **shapes})


@pytest.mark.parametrize("changes", [{}, {"context_tokens": 0, "context_from": 0}, {"mlp_ratio": 3.0}, {"classes": 7}])
def test_parameters_are_those_of_the_network(changes):
    config = replace(TINY, **changes)
    with torch.device("meta"):
        assert config.parameters == sum(p.numel() for p in JiT(config).parameters())
