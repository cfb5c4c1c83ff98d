import math

import mpmath
import numpy as np
import pytest
import scipy.linalg
import torch
from cleanfid.fid import frechet_distance as by_clean_fid
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

from asymflow.metrics.frechet import FrechetStatistics, frechet_distance

pytestmark = pytest.mark.filterwarnings("ignore:The `disp` argument:DeprecationWarning")  # clean-fid's


def features(count, dim=24, seed=0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    return torch.randn(count, dim, generator=generator, dtype=torch.float64) @ mix + shift


def statistics(x):
    return FrechetStatistics(x.shape[1]).update(x)


def by_definition(x, y):
    """With a matrix square root, as it is usually computed."""
    mean = [z.mean(0).numpy() for z in (x, y)]
    cov = [np.cov(z.numpy(), rowvar=False) for z in (x, y)]
    root = scipy.linalg.sqrtm(cov[0] @ cov[1])
    return ((mean[0] - mean[1]) ** 2).sum() + np.trace(cov[0]) + np.trace(cov[1]) - 2 * np.trace(root).real


@pytest.mark.parametrize(("n", "m"), [(400, 300), (2000, 25)])
def test_equals_the_definition(n, m):
    x, y = features(n), features(m, seed=1, shift=0.5)
    expected = by_definition(x, y)
    assert frechet_distance(statistics(x), statistics(y)) == pytest.approx(expected, rel=1e-8)


def by_others(x, y):
    """torch-fidelity's distance and clean-fid's."""
    a, b = (fid_features_to_statistics(z) for z in (x, y))
    return fid_statistics_to_metric(a, b, False)[KEY_METRIC_FID], by_clean_fid(a["mu"], a["sigma"], b["mu"], b["sigma"])


@pytest.mark.parametrize(("dim", "n", "m"), [(24, 400, 300), (64, 500, 1000), (200, 3000, 450)])
def test_equals_torch_fidelity_and_clean_fid(dim, n, m):
    x, y = features(n, dim), features(m, dim, seed=1, shift=0.5)
    found = frechet_distance(statistics(x), statistics(y))
    assert by_others(x, y) == pytest.approx((found, found), rel=1e-8)


def in_sixty_digits(x, y):
    """The distance by its definition, as the eigenvalues of cov_x cov_y: so many digits leave nothing to rounding."""
    with mpmath.workdps(60):
        means, covs = [], []
        for z in (mpmath.matrix(x.tolist()), mpmath.matrix(y.tolist())):
            ones = mpmath.ones(z.rows, 1)
            mean = z.T * ones / z.rows
            deviations = z - ones * mean.T
            means.append(mean)
            covs.append(deviations.T * deviations / (z.rows - 1))
        values = mpmath.eig(covs[0] * covs[1], left=False, right=False)
        cross = sum(mpmath.sqrt(abs(value)) for value in values)
        shift = means[0] - means[1]
        traces = sum(cov[i, i] for cov in covs for i in range(cov.rows))
        return float((shift.T * shift)[0] + traces - 2 * cross)


@pytest.mark.parametrize(("dim", "n", "m"), [(10, 6, 5), (12, 200, 6), (12, 4, 4), (6, 50, 40)])
def test_equals_sixty_digits_also_with_fewer_features_than_their_width(dim, n, m):
    x, y = features(n, dim), features(m, dim, seed=1, shift=0.5)
    exact = in_sixty_digits(x, y)
    assert frechet_distance(statistics(x), statistics(y)) == pytest.approx(exact, rel=1e-12)
    # A singular product's eigenvalues that should be 0 come out as about 1e-16 of the largest, and their square roots
    # are added: measured, the others are 4e-9 to 1e-8 too low here, and equal where there are features enough.
    assert by_others(x, y) == pytest.approx((exact, exact), rel=1e-10 if min(n, m) > dim else 1e-6)


@pytest.mark.parametrize(("n", "m"), [(50, 50), (50, 1000)])
def test_the_others_agree_with_fewer_features_as_far_as_they_are_accurate(n, m):
    x, y = features(n, 200), features(m, 200, seed=1, shift=0.5)
    found = frechet_distance(statistics(x), statistics(y))
    assert by_others(x, y) == pytest.approx((found, found), rel=1e-6)  # 3e-8 to 4e-8, measured


def test_distance_does_not_depend_on_the_number_of_machines():
    x, y = features(1000, 64, shift=3.0), features(800, 64, seed=1)
    merged = FrechetStatistics(64)
    for part in x.split([200, 1, 99, 300, 100, 37, 63, 200]):
        merged.merge(statistics(part))
    whole = frechet_distance(statistics(x), statistics(y))
    assert frechet_distance(merged, statistics(y)) == pytest.approx(whole, rel=1e-10)


def test_one_dimension_in_closed_form():
    x, y = torch.tensor([[0.0], [2.0], [4.0]]), torch.tensor([[1.0], [1.0], [7.0], [7.0]])
    expected = (2 - 4) ** 2 + (math.sqrt(4) - math.sqrt(12)) ** 2  # means and unbiased variances
    assert frechet_distance(statistics(x), statistics(y)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("count", [2, 5, 16])
def test_fewer_features_than_their_width(count):
    # the covariance of `count` features in a rotated frame of as many axes is that of the frame, padded with zeros
    low_x, low_y = features(count, dim=20, seed=2), features(count, dim=20, seed=3)
    frame = torch.linalg.qr(features(200, dim=200, seed=4)).Q[:20]
    found = frechet_distance(statistics(low_x @ frame), statistics(low_y @ frame))
    exact = by_low_rank(low_x, low_y)
    assert found == pytest.approx(exact, rel=1e-10)
    assert frechet_distance(statistics(low_x @ frame), statistics(low_x @ frame)) == pytest.approx(0, abs=1e-9)


def by_low_rank(x, y):
    """tr((cov_x cov_y)^(1/2)) is the nuclear norm of the product of the centred features."""
    (u, v), n = [z - z.mean(0) for z in (x, y)], len(x) - 1
    cross = torch.linalg.svdvals(u @ v.T / n).sum()
    return float((x.mean(0) - y.mean(0)).square().sum() + (u.square().sum() + v.square().sum()) / n - 2 * cross)


def test_parts_in_any_order_equal_the_whole():
    x = features(1000, shift=1e3)  # a mean far from zero must cost no digits
    whole, parts = statistics(x), [statistics(part) for part in x.split([1, 2, 500, 100, 7, 190, 150, 50])]
    for order in (range(8), [5, 0, 7, 3, 1, 6, 2, 4]):
        merged = FrechetStatistics(24)
        for i in order:
            merged.merge(parts[i])
        assert merged.count == 1000
        assert torch.allclose(merged.mean, whole.mean, rtol=1e-10, atol=0)
        assert (merged.cov - whole.cov).abs().max() < 1e-10 * whole.cov.abs().max()
    assert torch.allclose(whole.cov, torch.from_numpy(np.cov(x.numpy(), rowvar=False)), rtol=1e-10)


def test_half_precision_is_summed_in_double():
    x = features(500).half()
    assert torch.equal(statistics(x).cov, statistics(x.double()).cov)
    empty = FrechetStatistics(24).update(x[:0])
    assert empty.count == 0
    assert torch.equal(empty.merge(statistics(x)).mean, statistics(x).mean)


def test_a_reference_by_its_moments():
    x, y = features(300), features(200, seed=5)
    again = FrechetStatistics.from_moments(statistics(x).mean, statistics(x).cov, 300)
    expected = frechet_distance(statistics(x), statistics(y))
    assert frechet_distance(again, statistics(y)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: FrechetStatistics(3).update(torch.ones(2, 4)), r"expected \(N, 3\)"),
        (lambda: FrechetStatistics(3).update(torch.full((2, 3), torch.nan)), "NaN"),
        (lambda: FrechetStatistics(3).merge(FrechetStatistics(4)), "do not go with"),
        (lambda: FrechetStatistics(3).mean, "there are no features"),
        (lambda: FrechetStatistics(3).update(torch.ones(1, 3)).cov, "needs two features, there are 1"),
        (lambda: frechet_distance(statistics(torch.rand(9, 3)), statistics(torch.rand(9, 4))), "have no distance"),
        (lambda: FrechetStatistics.from_moments(torch.ones(3), torch.eye(4), 9), "do not fit"),
        (lambda: FrechetStatistics.from_moments(torch.ones(3), torch.eye(3) / 0, 9), "NaN"),
    ],
)
def test_invalid_arguments_are_refused(call, named):
    with pytest.raises(ValueError, match=named):
        call()
