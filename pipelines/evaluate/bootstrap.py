"""Confidence intervals: prompts are drawn again with replacement, each with all its images."""

from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np

from pipelines.evaluate.config import Bootstrap

Interval = tuple[float, float] | None


def of_mean(values: Sequence[float], groups: Sequence[str] | None, settings: Bootstrap) -> Interval:
    """Of the mean over prompts or, with `groups`, of the unweighted mean of their groups' means, each group drawn from
    by itself. Percentiles. None where there is nothing to draw from: one prompt, or no resamples asked for."""
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


def of_set(statistic: Callable[[np.ndarray], float], prompts: int, value: float, settings: Bootstrap) -> Interval:
    """Of a number that belongs to a set of images. `statistic` is given how often each prompt is drawn.

    Such distances grow when images repeat, so that only their spread is taken from the draws: value +- z times it.
    """
    if settings.set_resamples < 2 or prompts < 2:
        return None
    generator = np.random.default_rng(settings.seed)
    draws = generator.multinomial(prompts, np.full(prompts, 1 / prompts), settings.set_resamples)
    spread = float(np.std([statistic(counts) for counts in draws], ddof=1))
    z = NormalDist().inv_cdf((1 + settings.level) / 2)
    return value - z * spread, value + z * spread
