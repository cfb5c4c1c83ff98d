"""Bootstrap confidence intervals: prompts are resampled with replacement, each with all its images."""

from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np

from pipelines.evaluate.config import Bootstrap

Interval = tuple[float, float] | None


def mean_interval(values: Sequence[float], groups: Sequence[str] | None, settings: Bootstrap) -> Interval:
    """Return the percentile interval of the mean over prompts.

    With `groups` it is that of the unweighted mean of the groups' means, each group resampled separately. None with one
    prompt or without resamples.
    """
    if not settings.resamples or len(values) < 2:
        return None
    generator = np.random.default_rng(settings.seed)
    numbers, names = np.asarray(values, dtype=np.float64), np.asarray(groups if groups else [""] * len(values))
    means = np.zeros(settings.resamples)
    kinds = sorted(set(names.tolist()))
    for name in kinds:
        group = numbers[names == name]
        picks = generator.multinomial(len(group), np.full(len(group), 1 / len(group)), settings.resamples)
        means += picks @ group / len(group) / len(kinds)
    tail = (1 - settings.level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def ratio_interval(numerators: Sequence[float], denominators: Sequence[float], settings: Bootstrap) -> Interval:
    """Return the percentile interval of the ratio of two sums over prompts.

    Each prompt must have a positive denominator. None with one prompt or without resamples.
    """
    if not settings.resamples or len(numerators) < 2:
        return None
    generator = np.random.default_rng(settings.seed)
    count = len(numerators)
    picks = generator.multinomial(count, np.full(count, 1 / count), settings.resamples)
    ratios = (picks @ np.asarray(numerators, np.float64)) / (picks @ np.asarray(denominators, np.float64))
    tail = (1 - settings.level) / 2
    low, high = np.quantile(ratios, [tail, 1 - tail])
    return float(low), float(high)


def set_interval(statistic: Callable[[np.ndarray], float], prompts: int, value: float, settings: Bootstrap) -> Interval:
    """Return the interval of a statistic of a set of images.

    Such distances grow when images repeat, so that only their spread is taken from the resamples: value +- z times it.

    Args:
        statistic: computes the statistic from how often each prompt is drawn.
        prompts: number of prompts.
        value: statistic of all prompts.
        settings: number of resamples, level and seed.
    """
    if settings.set_resamples < 2 or prompts < 2:
        return None
    generator = np.random.default_rng(settings.seed)
    draws = generator.multinomial(prompts, np.full(prompts, 1 / prompts), settings.set_resamples)
    spread = float(np.std([statistic(counts) for counts in draws], ddof=1))
    z = NormalDist().inv_cdf((1 + settings.level) / 2)
    return value - z * spread, value + z * spread
