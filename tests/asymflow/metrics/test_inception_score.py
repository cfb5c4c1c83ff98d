import math

import numpy as np
import pytest
import torch
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

from asymflow.metrics.inception_score import inception_score


def logits(count, classes=1008, scale=3.0, seed=0):
    return scale * torch.randn(count, classes, generator=torch.Generator().manual_seed(seed))


def of_classes(each, classes=50, sure=20.0):
    """`each` samples of every class, sorted by class, and the classifier is sure."""
    return sure * torch.eye(classes).repeat_interleave(each, 0)


@pytest.mark.parametrize(("count", "splits", "seed"), [(1003, 10, 2020), (1003, 7, 5), (40, 1, 2020), (500, 10, None)])
def test_equals_torch_fidelity(count, splits, seed):
    x = logits(count)
    expected = isc_features_to_metric(x, splits, shuffle=seed is not None, rng_seed=seed)
    mean, std = inception_score(x, splits, seed)
    assert mean == pytest.approx(expected[KEY_METRIC_ISC_MEAN], rel=1e-10)
    assert mean > 5
    assert std == pytest.approx(expected[KEY_METRIC_ISC_STD], rel=1e-7, abs=1e-12)


def test_closed_form():
    assert inception_score(of_classes(10, sure=1e4), splits=1) == pytest.approx((50, 0), rel=1e-12)
    assert inception_score(logits(1).repeat(100, 1)) == pytest.approx((1, 0), abs=1e-12)  # all say the same
    p, q = torch.tensor([[0.9, 0.1], [0.3, 0.7]], dtype=torch.float64)
    entropy = [-float((x * x.log()).sum()) for x in ((p + q) / 2, p, q)]
    expected = math.exp(entropy[0] - (entropy[1] + entropy[2]) / 2)
    assert inception_score(torch.stack([p, q]).log(), splits=1) == pytest.approx((expected, 0), rel=1e-12)


def test_sorted_samples_need_the_shuffle():
    # ten splits of samples in the order of their classes see five classes each
    assert inception_score(of_classes(100, sure=1e4), shuffle_seed=None)[0] == pytest.approx(5, rel=1e-12)
    assert inception_score(of_classes(100, sure=1e4))[0] > 45
    x = of_classes(100) + logits(5000, 50, scale=6.0)
    assert inception_score(x, shuffle_seed=None)[0] < 0.4 * inception_score(x)[0]


def test_probabilities_that_underflow_count_nothing():
    x = torch.full((20, 4), -1e5)
    x[:10, 0] = x[10:, 1] = 0  # two of the classes have probability zero in float64, for all samples
    assert inception_score(x, splits=1)[0] == pytest.approx(2, rel=1e-12)
    assert np.isnan(isc_features_to_metric(x, 1)[KEY_METRIC_ISC_MEAN])  # where the reference has no number


def test_half_precision_is_summed_in_double():
    x = logits(100, 30).half()
    assert inception_score(x) == inception_score(x.double())


@pytest.mark.parametrize(
    ("x", "named"),
    [
        (torch.ones(9, 5), "N of at least 10 splits"),
        (torch.ones(90), "expected"),
        (torch.full((20, 5), torch.nan), "NaN"),
        (torch.full((20, 5), torch.inf), "infinite"),
    ],
)
def test_invalid_arguments_are_refused(x, named):
    with pytest.raises(ValueError, match=named):
        inception_score(x)
