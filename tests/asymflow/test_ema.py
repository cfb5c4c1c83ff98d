import pytest
import torch

from asymflow.ema import ConstantEMA, PowerEMA, karras_beta


def test_karras_beta():
    assert karras_beta(1) == 0
    assert karras_beta(2) == 0.5**8
    assert karras_beta(100, gamma=3.0) == pytest.approx(0.99**4)
    with pytest.raises(ValueError, match="t is 0"):
        karras_beta(0)


def test_average_is_the_power_law_mean():
    # With beta = (1 - 1/t)^(gamma+1) the value of step j has weight (1 - beta_j) prod_{i > j} beta_i.
    weight = torch.zeros(3)
    ema = PowerEMA({"weight": weight}, gamma=3.0, start_step=10)
    values = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    for step in range(1, 31):
        weight.copy_(values[step - 1])
        beta = ema.update(step)
        assert beta == (0 if step <= 10 else karras_beta(step - 9, 3.0))
        if step <= 10:
            assert torch.equal(ema.average["weight"], weight)
    expected = torch.zeros(3, dtype=torch.float64)
    for step in range(10, 31):
        share = 1 - karras_beta(step - 9, 3.0)
        for later in range(step + 1, 31):
            share *= karras_beta(later - 9, 3.0)
        expected += share * values[step - 1]
    assert torch.allclose(ema.average["weight"].double(), expected, atol=1e-6)


def test_the_average_is_a_linear_interpolation_bit_by_bit():
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (5, 3), "b": (7,)}
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    ema = ConstantEMA(tensors, 0.9)
    expected = {name: tensor.clone() for name, tensor in tensors.items()}
    live = {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in reversed(shapes.items())}
    ema.update(1, live)
    for name, average in expected.items():
        assert torch.equal(ema.average[name], average.lerp_(live[name].float(), 1 - 0.9))


def test_swap_and_back_is_exact():
    layer = torch.nn.Linear(4, 4).bfloat16()
    ema = PowerEMA(layer.named_parameters(), start_step=0)
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    addresses = [p.data_ptr() for p in layer.parameters()]
    ema.average["weight"].add_(1)
    with pytest.raises(RuntimeError, match="stop"), ema.swap():
        assert torch.equal(layer.weight, ema.average["weight"].bfloat16())
        raise RuntimeError("stop")
    for name, parameter in layer.named_parameters():
        assert torch.equal(parameter, before[name])
        assert parameter.requires_grad
    assert addresses == [p.data_ptr() for p in layer.parameters()]


def test_state_continues_the_run():
    torch.manual_seed(0)
    first = PowerEMA({"a": torch.zeros(2), "b": torch.zeros(3)}, start_step=2)
    weights = [{"a": torch.randn(2), "b": torch.randn(3)} for _ in range(8)]  # handed over, as if gathered
    for step in range(1, 5):
        first.update(step, weights[step - 1])
    second = PowerEMA({"a": torch.ones(2), "b": torch.ones(3)}, start_step=2)
    second.load_state_dict(first.state_dict())
    for step in range(5, 9):
        first.update(step, weights[step - 1])
        second.update(step, weights[step - 1])
    for name in ("a", "b"):
        assert torch.equal(first.average[name], second.average[name])


def test_wrong_tensors_are_refused():
    ema = PowerEMA({"a": torch.zeros(2)})
    with pytest.raises(ValueError, match="1 names differ.*'b'"):
        ema.update(1, {"a": torch.zeros(2), "b": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"a has shape \(3,\)"):
        ema.load_state_dict({"a": torch.zeros(3)})
    with pytest.raises(ValueError, match="no tensors"):
        PowerEMA({})


def test_constant_average_forgets_at_one_rate():
    weight = torch.zeros(2)
    average = ConstantEMA({"w": weight}, decay=0.9)
    for step in (1, 2, 3):
        assert average.update(step, {"w": torch.full((2,), float(step))}) == 0.9
    expected = 0.1 * (1 * 0.9**2 + 2 * 0.9 + 3)
    torch.testing.assert_close(average.average["w"], torch.full((2,), expected))
    other = ConstantEMA({"w": weight}, decay=0.9)
    other.load_state_dict(average.state_dict())
    assert torch.equal(other.average["w"], average.average["w"])
    with pytest.raises(ValueError, match="decay is 1"):
        ConstantEMA({"w": weight}, decay=1)
