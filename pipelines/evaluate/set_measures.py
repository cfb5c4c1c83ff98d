"""Measures of sets of images: distances to real images, and other statistics of no single image."""

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from asymflow.metrics.flat_ground import flat_ground_noise
from asymflow.metrics.frechet import FrechetStatistics, frechet_distance
from asymflow.metrics.inception_score import inception_score
from asymflow.metrics.precision_recall import precision_recall
from asymflow.metrics.sliced_wasserstein import (
    directions,
    distance_on_lines,
    high_pass,
    patches_of,
    sliced_wasserstein_of_each,
    standardised,
)
from asymflow.metrics.spectrum import distance_of_spectra
from pipelines.core.step import StepFailed
from pipelines.evaluate import bootstrap
from pipelines.evaluate.measures import MeasureInput, Named, Row, ScoredImages, mean_of
from pipelines.toy.data import BACKGROUNDS

_ON_PLAIN_GROUND = re.compile(rf"an emoji of .+ on ({'|'.join(BACKGROUNDS)})")
_FEW = 8  # projections per bootstrap resample, which estimates only the spread


@dataclass(frozen=True)
class Frechet(Named):
    """Fréchet distance between features of sampled and real images."""

    metric: str
    scorer: str
    feature: str = "pool"
    needs_real: ClassVar[bool] = True
    better: ClassVar[str] = "low"

    def rows(self, evaluated: MeasureInput) -> list[Row]:
        """Return the distance."""
        scores = evaluated.made.scores[self.scorer]
        real = self._reference(evaluated)
        made = _statistics(scores.features(self.feature))
        value = frechet_distance(made, real)

        def again(counts: np.ndarray) -> float:
            times = torch.from_numpy(np.repeat(counts, evaluated.repeats))
            return frechet_distance(_statistics(scores.features(self.feature), times), real)

        interval = bootstrap.set_interval(
            again, len(evaluated.generations) // evaluated.repeats, value, evaluated.settings
        )
        return [evaluated.row(self.metric, value, interval, self.scorer, more={"reference": _hash_of(real)})]

    def _reference(self, evaluated: MeasureInput) -> FrechetStatistics:
        given = evaluated.reference and getattr(evaluated.reference, self.feature)
        if given:
            return given
        real = evaluated.real_images(self.metric)
        return _statistics(real.scores[self.scorer].features(self.feature))


@dataclass(frozen=True)
class InceptionScore(Named):
    """Inception score in ten splits of shuffled samples; the interval is the splits' standard deviation."""

    metric: str
    scorer: str
    needs_real: ClassVar[bool] = False
    better: ClassVar[str] = "high"

    def rows(self, evaluated: MeasureInput) -> list[Row]:
        """Return the score."""
        mean, spread = inception_score(torch.cat(list(evaluated.made.scores[self.scorer].features("logits"))))
        more = {"splits": 10, "shuffled": True, "interval": "one standard deviation of the splits"}
        return [evaluated.row(self.metric, mean, (mean - spread, mean + spread), self.scorer, more=more)]


@dataclass(frozen=True)
class PrecisionRecall:
    """Improved precision and recall."""

    scorer: str
    k: int = 3
    names: ClassVar[tuple[str, ...]] = ("precision", "recall")
    needs_real: ClassVar[bool] = True
    better: ClassVar[str] = "high"

    def rows(self, evaluated: MeasureInput) -> list[Row]:
        """Return precision and recall."""
        real = torch.cat(list(evaluated.real_images("precision").scores[self.scorer].features("pool")))
        made = torch.cat(list(evaluated.made.scores[self.scorer].features("pool")))
        values = dict(zip(("precision", "recall"), precision_recall(made, real, self.k), strict=True))
        more = {"k": self.k, "reference": _hash(real)}
        return [evaluated.row(name, value, None, self.scorer, more=more) for name, value in values.items()]


@dataclass(frozen=True)
class SlicedWasserstein(Named):
    """Sliced Wasserstein distance of patches, the mean over repeats of the prompts.

    Each repeat is compared with equally many real images.
    """

    metric: str
    high_pass: bool = False
    scorer: str = ""
    needs_real: ClassVar[bool] = True
    better: ClassVar[str] = "low"

    def rows(self, evaluated: MeasureInput) -> list[Row]:
        """Return the distance."""
        real = self._patches(evaluated.real_images(self.metric).tensor)
        images = evaluated.made.tensor
        made = [self._patches(images[r :: evaluated.repeats]) for r in range(evaluated.repeats)]
        value = mean_of(sliced_wasserstein_of_each([part.flatten(0, 1) for part in made], real.flatten(0, 1)))

        lines = directions(real.shape[-1], _FEW).to(real).T
        of_made = [standardised(part.flatten(0, 1), real.flatten(0, 1)) @ lines for part in made]
        of_real = (standardised(real.flatten(0, 1), real.flatten(0, 1)) @ lines).sort(dim=0).values

        def again(counts: np.ndarray) -> float:
            times = torch.from_numpy(counts).repeat_interleave(real.shape[1])  # an image's patches stay together
            return mean_of([distance_on_lines(part.repeat_interleave(times, dim=0), of_real) for part in of_made])

        interval = bootstrap.set_interval(again, len(made[0]), value, evaluated.settings)
        more = {"patches": "64 of 7x7 a picture", "projections": 256, "high_pass": self.high_pass}
        return [evaluated.row(self.metric, value, interval, more={**more, "reference": _hash(real)})]

    def _patches(self, images: Tensor) -> Tensor:
        """Return (B, patches per image, F), at the same positions in every set."""
        view = high_pass(images) if self.high_pass else images
        return patches_of(view, generator=torch.Generator().manual_seed(0)).unflatten(0, (len(images), -1))


@dataclass(frozen=True)
class SpectrumDistance(Named):
    """Distance between mean radial power spectra."""

    metric: str
    scorer: str = "spectrum"
    needs_real: ClassVar[bool] = True
    better: ClassVar[str] = "low"

    def rows(self, evaluated: MeasureInput) -> list[Row]:
        """Return the distance."""
        real = _radial(evaluated.real_images(self.metric)).mean(0)
        made = _radial(evaluated.made)
        if made.shape[1:] != real.shape:
            raise StepFailed(
                f"{self.metric}: real images of {2 * len(real)} and sampled ones of {2 * made.shape[1]} pixels a side "
                "have no frequencies in common; set sampling.height and sampling.width"
            )
        return _of_repeats(self, evaluated, made, lambda mean: distance_of_spectra(mean, real), _hash(real))


@dataclass(frozen=True)
class HighFrequencyPower(Named):
    """High-frequency power over that of real images: 1 is ideal, below is blur, above is noise."""

    metric: str
    scorer: str = "spectrum"
    needs_real: ClassVar[bool] = True
    better: ClassVar[str] = ""

    def rows(self, evaluated: MeasureInput) -> list[Row]:
        """Return the ratio."""
        real = _column(evaluated.real_images(self.metric), self.scorer).mean()
        made = _column(evaluated.made, self.scorer)
        return _of_repeats(self, evaluated, made, lambda mean: float(mean / real), _hash(real))


@dataclass(frozen=True)
class FlatGround(Named):
    """Mean noise on the plain grounds of emoji, in 8-bit levels; no row if no prompt has such a ground."""

    metric: str
    scorer: str = ""
    needs_real: ClassVar[bool] = False
    better: ClassVar[str] = "low"

    def rows(self, evaluated: MeasureInput) -> list[Row]:
        """Return the mean noise over prompts."""
        plain = [i for i, g in enumerate(evaluated.generations) if _ON_PLAIN_GROUND.fullmatch(g.prompt.text)]
        if not plain:
            return []
        images = (127.5 * evaluated.made.tensor[plain] + 127.5).round().to(torch.uint8)
        found: dict[str, list[float]] = {}
        for index, image in zip(plain, images, strict=True):
            noise = flat_ground_noise(image)
            if noise is not None:
                found.setdefault(evaluated.generations[index].prompt.id, []).append(noise)
        if not found:
            return []
        values = [mean_of(of_prompt) for of_prompt in found.values()]
        interval = bootstrap.mean_interval(values, None, evaluated.settings)
        more = {"unit": "8-bit levels", "prompts": "emoji on plain grounds"}
        row = evaluated.row(self.metric, mean_of(values), interval, prompts=len(values), more=more)
        return [{**row, "pictures": sum(map(len, found.values()))}]  # images whose ground was found


def _of_repeats(
    measure: SpectrumDistance | HighFrequencyPower,
    evaluated: MeasureInput,
    made: Tensor,
    statistic: Callable[[Tensor], float],
    reference: str,
) -> list[Row]:
    """Return a row: the mean over repeats of a statistic of the mean over prompts of (B, ...) values."""
    parts = [made[r :: evaluated.repeats] for r in range(evaluated.repeats)]
    value = mean_of([statistic(part.mean(0)) for part in parts])

    def again(counts: np.ndarray) -> float:
        weights = torch.from_numpy(counts).double() / counts.sum()
        return mean_of([statistic(torch.tensordot(weights, part, dims=1)) for part in parts])

    interval = bootstrap.set_interval(again, len(parts[0]), value, evaluated.settings)
    return [evaluated.row(measure.metric, value, interval, measure.scorer, more={"reference": reference})]


def _radial(images: ScoredImages) -> Tensor:
    return torch.cat(list(images.scores["spectrum"].features("radial")))


def _column(images: ScoredImages, scorer: str, name: str = "score") -> Tensor:
    return torch.tensor([row[name] for row in images.scores[scorer].rows()], dtype=torch.float64)


def _statistics(parts: Iterator[Tensor], times: Tensor | None = None) -> FrechetStatistics:
    """Return the statistics of features; `times` is how often each image counts."""
    statistics, start = None, 0
    for part in parts:
        statistics = statistics or FrechetStatistics(part.shape[1])
        if times is not None:
            start, counts = start + len(part), times[start : start + len(part)]
            part = part.repeat_interleave(counts, dim=0)
        statistics.update(part)
    if statistics is None:
        raise ValueError("there are no features")
    return statistics


def _hash_of(statistics: FrechetStatistics) -> str:
    return _hash(torch.cat([statistics.mean[None], statistics.cov]))


def _hash(values: Tensor) -> str:
    return hashlib.sha256(values.double().contiguous().numpy().tobytes()).hexdigest()[:12]
