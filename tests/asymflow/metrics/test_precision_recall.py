import pytest
import torch
from torch_fidelity.metric_prc import calculate_precision_recall_full

from asymflow.metrics.precision_recall import precision_recall


def cloud(count, dim=16, seed=0, scale=1.0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(count, dim, generator=generator, dtype=torch.float64) + shift


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("chunk", [1, 7, 10_000])
def test_equals_torch_fidelity(k, chunk):
    x, y = cloud(90, scale=0.9, shift=0.2), cloud(120, seed=1)
    expected = calculate_precision_recall_full(x, y, k)
    assert precision_recall(x, y, k, chunk) == pytest.approx(expected, abs=1e-6)  # the reference's means are float32
    assert all(0.05 < value < 0.95 for value in expected)


def test_as_many_values_as_pool3_far_from_the_origin():
    x, y = (0.1 * z.float() + 5 for z in (cloud(300, 2048), cloud(400, 2048, seed=1)))
    expected = calculate_precision_recall_full(x.double(), y.double())
    assert precision_recall(x, y, chunk=128) == pytest.approx(expected, abs=1e-6)


def test_mode_collapse_has_precision_without_recall():
    centres = 50 * torch.eye(4, dtype=torch.float64)
    reference = (cloud(400, 4).view(4, 100, 4) + centres[:, None]).flatten(0, 1)
    collapsed = cloud(100, 4, seed=1, scale=0.5) + centres[0]
    precision, recall = precision_recall(collapsed, reference)
    assert precision > 0.9
    assert recall < 0.3
    assert precision_recall(reference, collapsed) == (recall, precision)
    # and the other way round: everything is there, among as much that is not
    strewn = torch.cat([reference + 0.1 * cloud(400, 4, seed=2), cloud(400, 4, seed=3, shift=-500.0)])
    precision, recall = precision_recall(strewn, reference)
    assert precision < 0.55
    assert recall > 0.9


def test_on_a_line_in_closed_form():
    reference = torch.tensor([[0.0], [1.0], [3.0]])  # k = 1: radii 1, 1, 2; the balls are [-1, 1], [0, 2], [1, 5]
    features = torch.tensor([[-1.0], [-1.5], [5.0], [5.5], [2.5]])  # radii 0.5, 0.5, 0.5, 0.5, 2.5: a surface is inside
    precision, recall = precision_recall(features, reference, k=1)
    assert precision == 3 / 5  # -1 and 5 lie on a surface, 2.5 inside
    assert recall == 3 / 3  # 2.5's ball is [0, 5]


def test_copies_are_neighbours_and_ties_are_inside():
    # four copies of each point: with k = 3 every radius is 0, and only exact copies are inside
    points = 1e3 + cloud(30, 64)
    x = points.repeat_interleave(4, 0)
    mixed = torch.cat([points[:10], points[10:20] + 1e-3])
    assert precision_recall(mixed, x, 3, chunk=7)[0] == 0.5
    assert precision_recall(x, x[torch.randperm(len(x))], chunk=7) == (1.0, 1.0)
    # a grid is all ties: its own points, and those a step outside, are within reach of it
    line = torch.arange(20.0, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line) + 1e4
    assert precision_recall(grid + torch.tensor([1.0, 0.0]), grid, 4, chunk=33) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("x", "y", "named"),
    [
        (torch.rand(3, 4), torch.rand(9, 4), "more than k = 3"),
        (torch.rand(9, 4), torch.rand(3, 4), "more than k = 3"),
        (torch.rand(9, 4), torch.rand(9, 5), "expected"),
        (torch.full((9, 4), torch.nan), torch.rand(9, 4), "NaN"),
        (torch.rand(9, 4), torch.full((9, 4), torch.inf), "infinite"),
    ],
)
def test_invalid_arguments_are_refused(x, y, named):
    with pytest.raises(ValueError, match=named):
        precision_recall(x, y)
