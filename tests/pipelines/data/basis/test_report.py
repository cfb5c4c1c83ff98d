import pytest
import torch

from asymflow.moments import PatchMoments
from pipelines.data.basis.report import convergence, merged, standard_errors


def test_jackknife_of_a_mean_is_its_standard_error():
    torch.manual_seed(0)
    groups = []
    for _ in range(16):
        groups.append(PatchMoments(3))
        groups[-1].update(torch.randn(100, 3, dtype=torch.float64))
    means = torch.stack([g.pixel_sum[0] / g.count for g in groups])
    errors = standard_errors(groups, lambda m: {"mean": float(m.pixel_sum[0] / m.count)})
    assert errors["mean"] == pytest.approx(float(means.std() / 4))
    assert standard_errors(groups[:1], lambda m: {"mean": 0.0}) == {}


def test_convergence_skips_small_samples():
    torch.manual_seed(0)
    groups = []
    for _ in range(4):
        groups.append(PatchMoments(8, 4))
        groups[-1].update(torch.randn(2, 8), torch.randn(2, 4))
    from pipelines.data.basis.report import bases_of

    rows = convergence(groups, bases_of(merged(groups), 2))
    assert [row["share"] for row in rows] == [0.5]
