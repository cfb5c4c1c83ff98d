import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from asymflow.models.jit import SIZES, JiT, JiTConfig
from pipelines.train.pretrain.flops import forward_flops, training_flops

SMALL = JiTConfig(width=32, depth=4, heads=2, bottleneck=24, context_from=1, context_tokens=5, patch_size=4)


@pytest.mark.parametrize(("size", "gflop"), [("H", 363), ("G", 766)])
def test_operations_are_those_of_the_papers_table(size, gflop):
    assert int(forward_flops(SIZES[size], 256) / 1e9) == gflop


def test_operations_are_those_that_torch_counts():
    """Except for products of the condition, which are computed once per image."""
    network = JiT(SMALL)
    once = sum(
        2 * module.in_features * module.out_features
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Linear) and ("modulation" in name or name.startswith("time"))
    )
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        answer, _ = network(torch.randn(3, 12, 48), torch.rand(3), torch.zeros(3).long(), (3, 4))
        forward = counter.get_total_flops()
        assert forward - 3 * once == 3 * forward_flops(SMALL, 12)
        answer.sum().backward()
    backward = counter.get_total_flops() - forward
    assert backward == pytest.approx(2 * forward, rel=0.03)  # the first layer's input needs no gradient
    assert training_flops(SMALL, 12) == 3 * forward_flops(SMALL, 12)
