import numpy as np
import pytest

from pipelines.evaluate import bootstrap
from pipelines.evaluate.config import Bootstrap


def test_the_interval_of_a_mean_is_that_of_the_textbook():
    values = np.random.default_rng(0).normal(3, 2, 400).tolist()
    low, high = bootstrap.mean_interval(values, None, Bootstrap(resamples=4000))
    error = 1.96 * np.std(values) / 20
    assert (low, high) == pytest.approx((np.mean(values) - error, np.mean(values) + error), abs=0.04)
    assert bootstrap.mean_interval(values, None, Bootstrap(resamples=4000)) == (low, high)
    wider = bootstrap.mean_interval(values, None, Bootstrap(resamples=4000, level=0.99))
    assert wider[0] < low
    assert wider[1] > high


def test_it_covers_the_truth_as_often_as_it_says():
    generator, covered, settings = np.random.default_rng(1), 0, Bootstrap(resamples=300, level=0.9)
    for _ in range(200):
        low, high = bootstrap.mean_interval(generator.exponential(1, 80).tolist(), None, settings)
        covered += low <= 1 <= high
    assert 0.82 <= covered / 200 <= 0.95


def test_a_mean_of_categories_weighs_them_alike():
    values = [0.0] * 90 + [1.0, 0.0] * 5
    groups = ["many"] * 90 + ["few"] * 10
    low, high = bootstrap.mean_interval(values, groups, Bootstrap(resamples=4000))
    error = 1.96 * np.sqrt(0.25 / 10) / 2  # only the few vary, and they are half of the mean
    assert (low, high) == pytest.approx((0.25 - error, 0.25 + error), abs=0.05)


def test_the_interval_of_a_set_takes_its_spread_from_the_draws_and_not_its_place():
    sample = np.random.default_rng(2).normal(0, 1, 300)
    biased = lambda counts: float(np.average(sample, weights=counts)) + 10  # noqa: E731
    low, high = bootstrap.set_interval(biased, 300, 0.5, Bootstrap(set_resamples=400))
    assert (low + high) / 2 == pytest.approx(0.5)
    assert (high - low) / 2 == pytest.approx(1.96 / np.sqrt(300), rel=0.1)


def test_no_interval_where_there_is_nothing_to_draw_from():
    assert bootstrap.mean_interval([1.0], None, Bootstrap()) is None
    assert bootstrap.mean_interval([1.0, 2.0], None, Bootstrap(resamples=0)) is None
    assert bootstrap.set_interval(lambda counts: 1.0, 1, 1.0, Bootstrap()) is None
    assert bootstrap.set_interval(lambda counts: 1.0, 5, 1.0, Bootstrap(set_resamples=0)) is None


def test_the_interval_of_a_ratio_resamples_prompts_with_their_parts():
    settings = Bootstrap(resamples=500)
    numerators, denominators = [1.0, 4.0, 0.0, 3.0], [2.0, 4.0, 1.0, 3.0]
    low, high = bootstrap.ratio_interval(numerators, denominators, settings)
    assert 0 <= low < 8 / 10 < high <= 1
    assert bootstrap.ratio_interval([2.0, 6.0], [1.0, 3.0], settings) == pytest.approx((2, 2))
    assert bootstrap.ratio_interval([1.0], [2.0], settings) is None
    assert bootstrap.ratio_interval([1.0, 2.0], [2.0, 2.0], Bootstrap(resamples=0)) is None
