"""Measures: rows of the results table from one model's scores, each with its interval and protocol.

A measure names the scorer that it reads, and is plain data in a suite. It uses every image: a score that is not finite
is an error.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from asymflow.metrics import dpg
from asymflow.metrics.references import Reference
from pipelines.evaluate import bootstrap
from pipelines.evaluate.bootstrap import Interval
from pipelines.evaluate.config import Bootstrap
from pipelines.evaluate.image_sets import ImageSet, load_image
from pipelines.evaluate.prompts import Generation, Prompt
from pipelines.evaluate.score import Scores

Row = dict[str, Any]


@dataclass(frozen=True)
class ScoredImages:
    """A set of images and their scores."""

    set: ImageSet
    scores: Mapping[str, Scores]

    @cached_property
    def tensor(self) -> Tensor:
        """Return all images, (B, 3, H, W) in [-1, 1]: for small suites."""
        return torch.stack([load_image(uri) for uri in self.set.files.values()]).float() / 127.5 - 1


@dataclass(frozen=True)
class MeasureInput:
    """Input of a measure: one model's images in the order of the generations, and the real ones."""

    generations: Sequence[Generation]
    repeats: int
    made: ScoredImages
    real: ScoredImages | None
    """Real images"""
    reference: Reference | None
    """Statistics of real images, given as numbers"""
    settings: Bootstrap

    @property
    def prompts(self) -> list[Prompt]:
        """Return the prompts in order."""
        return [generation.prompt for generation in self.generations[:: self.repeats]]

    def by_prompt(self, values: Sequence[Any]) -> list[Sequence[Any]]:
        """Return values of all images, grouped by prompt."""
        return [values[i : i + self.repeats] for i in range(0, len(self.generations), self.repeats)]

    def real_images(self, why: str) -> ScoredImages:
        """Return the real images. Raises ValueError if there are none."""
        if self.real is None:
            raise ValueError(f"{why} needs real images: give reference.source=FOLDER, or an .npz with images")
        return self.real

    def row(
        self, metric: str, value: float, interval: Interval, scorer: str = "", category: str = "", prompts: int = 0,
        more: Mapping[str, Any] = MappingProxyType({}),
    ) -> Row:  # fmt: skip
        """Return a row of the table.

        Args:
            metric: name of the metric.
            value: its value.
            interval: its confidence interval.
            scorer: scorer whose protocol the row includes.
            category: category of the prompts; empty for all.
            prompts: number of prompts; 0 for all.
            more: additions to the protocol.

        Raises:
            ValueError: the value is not finite.
        """
        if not math.isfinite(value):
            raise ValueError(f"{metric} {category} is {value}: a score of its images is not finite")
        count = prompts or len(self.generations) // self.repeats
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
    """Computes rows of the table."""

    needs_real: ClassVar[bool]
    """Whether it compares with real images"""
    better: ClassVar[str]
    """high or low; empty: neither"""

    @property
    def scorer(self) -> str:
        """Return the scorer that it reads; empty if none."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of its metrics over all categories."""
        ...

    def rows(self, evaluated: MeasureInput) -> list[Row]:
        """Return the rows of one model."""
        ...


class Named:
    """A measure of one metric."""

    metric: str

    @property
    def names(self) -> tuple[str, ...]:
        """Return the metric's name."""
        return (self.metric,)


Value = Callable[[Prompt, Sequence[Row]], float]
"""Computes a prompt's value from the rows of its images"""


def dpg_score(prompt: Prompt, rows: Sequence[Row]) -> float:
    """Return a prompt's DPG score from the answers for its images."""
    return dpg.score_prompt(dpg_item(prompt).parents, [_answers(row) for row in rows])


def dpg_item(prompt: Prompt) -> dpg.Item:
    """Return a prompt's questions; question IDs are numbers, which JSON keys cannot be."""
    names = ("parents", "questions", "categories")
    return dpg.Item(prompt.text, *({int(q): value for q, value in prompt.data[name].items()} for name in names))


def _answers(row: Row) -> dict[int, bool]:
    return {int(q): yes for q, yes in json.loads(row["answers"]).items()}


@dataclass(frozen=True)
class Mean(Named):
    """Mean of a score over all images; with `by_category` the mean of the categories' means, and each of these."""

    metric: str
    scorer: str
    column: str = "score"
    value: Value | None = None
    by_category: bool = False
    scale: float = 1.0
    needs_real: ClassVar[bool] = False
    better: ClassVar[str] = "high"

    def rows(self, evaluated: MeasureInput) -> list[Row]:
        """Return the overall row, and with `by_category` a row per category."""
        prompts = evaluated.prompts
        grouped = evaluated.by_prompt(evaluated.made.scores[self.scorer].rows())
        values = [self.scale * self._value(prompt, rows) for prompt, rows in zip(prompts, grouped, strict=True)]
        if not self.by_category:
            interval = bootstrap.mean_interval(values, None, evaluated.settings)
            return [evaluated.row(self.metric, mean_of(values), interval, self.scorer)]
        categories = [prompt.category for prompt in prompts]
        found = []
        for name in dict.fromkeys(categories):
            own = [v for v, category in zip(values, categories, strict=True) if category == name]
            interval = bootstrap.mean_interval(own, None, evaluated.settings)
            found.append(evaluated.row(self.metric, mean_of(own), interval, self.scorer, name, len(own)))
        interval = bootstrap.mean_interval(values, categories, evaluated.settings)
        overall = mean_of([row["value"] for row in found])
        return [evaluated.row(self.metric, overall, interval, self.scorer, more={"mean": "of categories"}), *found]

    def _value(self, prompt: Prompt, rows: Sequence[Row]) -> float:
        if self.value:
            return self.value(prompt, rows)
        return mean_of([float(row[self.column]) for row in rows])


@dataclass(frozen=True)
class DpgCategories:
    """DPG score over all questions of a category, also by the reference's rule (last crop, before zeroing)."""

    scorer: str
    names: ClassVar[tuple[str, ...]] = ()
    needs_real: ClassVar[bool] = False
    better: ClassVar[str] = "high"

    def rows(self, evaluated: MeasureInput) -> list[Row]:
        """Return a row per category and rule."""
        prompts = evaluated.prompts
        grouped = evaluated.by_prompt(evaluated.made.scores[self.scorer].rows())
        items = {prompt.id: dpg_item(prompt) for prompt in prompts}
        answers = {p.id: [_answers(row) for row in rows] for p, rows in zip(prompts, grouped, strict=True)}
        found, more = [], {"questions": "of the category"}
        for metric, official in (("dpg", False), ("dpg_official", True)):
            for category, value in dpg.category_scores(items, answers, official).items():
                found.append(evaluated.row(metric, value, None, self.scorer, category, more=more))
        return found


def mean_of(values: Sequence[float]) -> float:
    """Return the mean of the values."""
    return math.fsum(values) / len(values)
