"""What becomes of one model's scores: rows of the table, each a number with its interval and its protocol.

A measure names the scorer that it reads, and is plain data in a suite. It leaves no picture out: a score that is not
finite is an error.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from asymflow.metrics import dpg
from asymflow.metrics.frechet import FrechetStatistics, frechet_distance
from asymflow.metrics.inception_score import inception_score
from asymflow.metrics.precision_recall import precision_recall
from asymflow.metrics.references import Reference
from asymflow.metrics.sliced_wasserstein import (
    directions,
    distance_on_lines,
    high_pass,
    patches_of,
    sliced_wasserstein,
    standardised,
)
from asymflow.metrics.spectrum import distance_of_spectra
from pipelines.evaluate import bootstrap
from pipelines.evaluate.bootstrap import Interval
from pipelines.evaluate.config import Bootstrap
from pipelines.evaluate.picture_sets import PictureSet, load_picture
from pipelines.evaluate.prompts import Prompt, Shot
from pipelines.evaluate.score import Scores

Row = dict[str, Any]
_FEW = 8  # lines in each draw of a bootstrap, which are for the spread alone


@dataclass(frozen=True)
class Pictures:
    """Some pictures and what the scorers made of them."""

    set: PictureSet
    scores: Mapping[str, Scores]

    @cached_property
    def tensor(self) -> Tensor:
        """All at once, (B, 3, H, W) in [-1, 1]: for small suites."""
        return torch.stack([load_picture(uri) for uri in self.set.files.values()]).float() / 127.5 - 1


@dataclass(frozen=True)
class Evaluated:
    """What a measure is given: one model's pictures in the order of the shots, and what they are compared with."""

    shots: Sequence[Shot]
    repeats: int
    made: Pictures
    real: Pictures | None
    """Real pictures"""
    reference: Reference | None
    """Statistics of real pictures that were given as numbers"""
    settings: Bootstrap

    @property
    def prompts(self) -> list[Prompt]:
        return [shot.prompt for shot in self.shots[:: self.repeats]]

    def by_prompt(self, values: Sequence[Any]) -> list[Sequence[Any]]:
        return [values[i : i + self.repeats] for i in range(0, len(self.shots), self.repeats)]

    def real_pictures(self, why: str) -> Pictures:
        """Raises ValueError where there are none."""
        if self.real is None:
            raise ValueError(f"{why} needs real pictures: give reference.source=FOLDER, or an .npz that has some")
        return self.real

    def row(
        self, metric: str, value: float, interval: Interval, scorer: str = "", category: str = "", prompts: int = 0,
        more: Mapping[str, Any] = MappingProxyType({}),
    ) -> Row:  # fmt: skip
        """Raises ValueError for a value that is not finite. `more` goes into the protocol."""
        if not math.isfinite(value):
            raise ValueError(f"{metric} {category} is {value}: a score of its pictures is not finite")
        count = prompts or len(self.shots) // self.repeats
        protocol = {
            "metric": metric,
            "scorer": dict(self.made.scores[scorer].protocol) if scorer else {},
            "pictures": count * self.repeats,
            "seeds": f"prompt x {self.repeats} + repeat",
            **more,
        }
        low, high = interval or (None, None)
        return {
            "metric": metric, "category": category, "value": value, "low": low, "high": high,
            "prompts": count, "pictures": count * self.repeats, "protocol": protocol,
        }  # fmt: skip


class Measure(Protocol):
    needs_real: ClassVar[bool]
    """Whether it compares with real pictures"""

    @property
    def scorer(self) -> str:
        """Empty: it needs no scorer"""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """Of the metrics that are no category's"""
        ...

    def rows(self, evaluated: Evaluated) -> list[Row]: ...


class _Named:
    metric: str

    @property
    def names(self) -> tuple[str, ...]:
        return (self.metric,)


Value = Callable[[Prompt, Sequence[Row]], float]
"""A prompt's own value from the rows of its pictures"""


def dpg_score(prompt: Prompt, rows: Sequence[Row]) -> float:
    return dpg.score_prompt(dpg_item(prompt).parents, [_answers(row) for row in rows])


def dpg_item(prompt: Prompt) -> dpg.Item:
    """Question ids are numbers, which JSON's keys are not."""
    names = ("parents", "questions", "categories")
    return dpg.Item(prompt.text, *({int(q): value for q, value in prompt.data[name].items()} for name in names))


def _answers(row: Row) -> dict[int, bool]:
    return {int(q): yes for q, yes in json.loads(row["answers"]).items()}


@dataclass(frozen=True)
class Mean(_Named):
    """Of a score over all pictures; with `by_category` of the categories' means, which are given too."""

    metric: str
    scorer: str
    column: str = "score"
    value: Value | None = None
    by_category: bool = False
    scale: float = 1.0
    needs_real: ClassVar[bool] = False

    def rows(self, evaluated: Evaluated) -> list[Row]:
        prompts = evaluated.prompts
        grouped = evaluated.by_prompt(evaluated.made.scores[self.scorer].rows())
        values = [self.scale * self._value(prompt, rows) for prompt, rows in zip(prompts, grouped, strict=True)]
        if not self.by_category:
            interval = bootstrap.of_mean(values, None, evaluated.settings)
            return [evaluated.row(self.metric, _mean(values), interval, self.scorer)]
        categories = [prompt.category for prompt in prompts]
        found = []
        for name in dict.fromkeys(categories):
            own = [v for v, category in zip(values, categories, strict=True) if category == name]
            interval = bootstrap.of_mean(own, None, evaluated.settings)
            found.append(evaluated.row(self.metric, _mean(own), interval, self.scorer, name, len(own)))
        interval = bootstrap.of_mean(values, categories, evaluated.settings)
        overall = _mean([row["value"] for row in found])
        return [evaluated.row(self.metric, overall, interval, self.scorer, more={"mean": "of categories"}), *found]

    def _value(self, prompt: Prompt, rows: Sequence[Row]) -> float:
        if self.value:
            return self.value(prompt, rows)
        return _mean([float(row[self.column]) for row in rows])


@dataclass(frozen=True)
class DpgCategories:
    """Over all questions of a category; the reference's own rule (last crop, before zeroing) is given beside it."""

    scorer: str
    names: ClassVar[tuple[str, ...]] = ()
    needs_real: ClassVar[bool] = False

    def rows(self, evaluated: Evaluated) -> list[Row]:
        prompts = evaluated.prompts
        grouped = evaluated.by_prompt(evaluated.made.scores[self.scorer].rows())
        items = {prompt.id: dpg_item(prompt) for prompt in prompts}
        answers = {p.id: [_answers(row) for row in rows] for p, rows in zip(prompts, grouped, strict=True)}
        found, more = [], {"questions": "of the category"}
        for metric, official in (("dpg", False), ("dpg_official", True)):
            for category, value in dpg.category_scores(items, answers, official).items():
                found.append(evaluated.row(metric, value, None, self.scorer, category, more=more))
        return found


@dataclass(frozen=True)
class Frechet(_Named):
    metric: str
    scorer: str
    feature: str = "pool"
    needs_real: ClassVar[bool] = True

    def rows(self, evaluated: Evaluated) -> list[Row]:
        scores = evaluated.made.scores[self.scorer]
        real = self._reference(evaluated)
        made = _statistics(scores.features(self.feature))
        value = frechet_distance(made, real)

        def again(counts: np.ndarray) -> float:
            times = torch.from_numpy(np.repeat(counts, evaluated.repeats))
            return frechet_distance(_statistics(scores.features(self.feature), times), real)

        interval = bootstrap.of_set(again, len(evaluated.shots) // evaluated.repeats, value, evaluated.settings)
        return [evaluated.row(self.metric, value, interval, self.scorer, more={"reference": _hash_of(real)})]

    def _reference(self, evaluated: Evaluated) -> FrechetStatistics:
        given = evaluated.reference and getattr(evaluated.reference, self.feature)
        if given:
            return given
        real = evaluated.real_pictures(self.metric)
        return _statistics(real.scores[self.scorer].features(self.feature))


@dataclass(frozen=True)
class InceptionScore(_Named):
    """In ten splits of shuffled samples: the interval is that of the splits, not a bootstrap's."""

    metric: str
    scorer: str
    needs_real: ClassVar[bool] = False

    def rows(self, evaluated: Evaluated) -> list[Row]:
        mean, spread = inception_score(torch.cat(list(evaluated.made.scores[self.scorer].features("logits"))))
        more = {"splits": 10, "shuffled": True, "interval": "one standard deviation of the splits"}
        return [evaluated.row(self.metric, mean, (mean - spread, mean + spread), self.scorer, more=more)]


@dataclass(frozen=True)
class PrecisionRecall:
    scorer: str
    k: int = 3
    names: ClassVar[tuple[str, ...]] = ("precision", "recall")
    needs_real: ClassVar[bool] = True

    def rows(self, evaluated: Evaluated) -> list[Row]:
        real = torch.cat(list(evaluated.real_pictures("precision").scores[self.scorer].features("pool")))
        made = torch.cat(list(evaluated.made.scores[self.scorer].features("pool")))
        values = dict(zip(("precision", "recall"), precision_recall(made, real, self.k), strict=True))
        more = {"k": self.k, "reference": _hash(real)}
        return [evaluated.row(name, value, None, self.scorer, more=more) for name, value in values.items()]


@dataclass(frozen=True)
class SlicedWasserstein(_Named):
    """Of patches; each repeat of the prompts is compared with as many real pictures, and the mean taken."""

    metric: str
    high_pass: bool = False
    scorer: str = ""
    needs_real: ClassVar[bool] = True

    def rows(self, evaluated: Evaluated) -> list[Row]:
        real = self._patches(evaluated.real_pictures(self.metric).tensor)
        images = evaluated.made.tensor
        made = [self._patches(images[r :: evaluated.repeats]) for r in range(evaluated.repeats)]
        value = _mean([sliced_wasserstein(part.flatten(0, 1), real.flatten(0, 1)) for part in made])

        lines = directions(real.shape[-1], _FEW).to(real).T
        of_made = [standardised(part.flatten(0, 1), real.flatten(0, 1)) @ lines for part in made]
        of_real = standardised(real.flatten(0, 1), real.flatten(0, 1)) @ lines

        def again(counts: np.ndarray) -> float:
            times = torch.from_numpy(counts).repeat_interleave(real.shape[1])  # a picture's patches stay together
            return _mean([distance_on_lines(part.repeat_interleave(times, dim=0), of_real) for part in of_made])

        interval = bootstrap.of_set(again, len(made[0]), value, evaluated.settings)
        more = {"patches": "64 of 7x7 a picture", "projections": 256, "high_pass": self.high_pass}
        return [evaluated.row(self.metric, value, interval, more={**more, "reference": _hash(real)})]

    def _patches(self, images: Tensor) -> Tensor:
        """(B, patches a picture, F), at the same places in every set."""
        view = high_pass(images) if self.high_pass else images
        return patches_of(view, generator=torch.Generator().manual_seed(0)).unflatten(0, (len(images), -1))


@dataclass(frozen=True)
class SpectrumDistance(_Named):
    metric: str
    scorer: str = "spectrum"
    needs_real: ClassVar[bool] = True

    def rows(self, evaluated: Evaluated) -> list[Row]:
        real = _radial(evaluated.real_pictures(self.metric)).mean(0)
        made = _radial(evaluated.made)
        return _of_repeats(self, evaluated, made, lambda mean: distance_of_spectra(mean, real), _hash(real))


@dataclass(frozen=True)
class HighFrequencyPower(_Named):
    """Over that of the real pictures: 1 is right, below is blur, above is noise."""

    metric: str
    scorer: str = "spectrum"
    needs_real: ClassVar[bool] = True

    def rows(self, evaluated: Evaluated) -> list[Row]:
        real = _column(evaluated.real_pictures(self.metric), self.scorer).mean()
        made = _column(evaluated.made, self.scorer)
        return _of_repeats(self, evaluated, made, lambda mean: float(mean / real), _hash(real))


def _of_repeats(
    measure: SpectrumDistance | HighFrequencyPower,
    evaluated: Evaluated,
    made: Tensor,
    statistic: Callable[[Tensor], float],
    reference: str,
) -> list[Row]:
    """The mean over repeats of a statistic of the mean over prompts of (B, ...) values."""
    parts = [made[r :: evaluated.repeats] for r in range(evaluated.repeats)]
    value = _mean([statistic(part.mean(0)) for part in parts])

    def again(counts: np.ndarray) -> float:
        weights = torch.from_numpy(counts).double() / counts.sum()
        return _mean([statistic(torch.tensordot(weights, part, dims=1)) for part in parts])

    interval = bootstrap.of_set(again, len(parts[0]), value, evaluated.settings)
    return [evaluated.row(measure.metric, value, interval, measure.scorer, more={"reference": reference})]


def _radial(pictures: Pictures) -> Tensor:
    return torch.cat(list(pictures.scores["spectrum"].features("radial")))


def _column(pictures: Pictures, scorer: str, name: str = "score") -> Tensor:
    return torch.tensor([row[name] for row in pictures.scores[scorer].rows()], dtype=torch.float64)


def _statistics(parts: Iterator[Tensor], times: Tensor | None = None) -> FrechetStatistics:
    """`times` says how often each picture counts."""
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


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
