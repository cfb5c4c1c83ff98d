"""What becomes of one model's scores: rows of the table, each a number with its interval and its protocol.

A measure names the scorer that it reads, and is plain data in a suite. It leaves no image out: a score that is not
finite is an error.
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
from pipelines.evaluate.image_sets import ImageSet, load_picture
from pipelines.evaluate.prompts import Prompt, Shot
from pipelines.evaluate.score import Scores

Row = dict[str, Any]


@dataclass(frozen=True)
class Pictures:
    """Some images and what the scorers made of them."""

    set: ImageSet
    scores: Mapping[str, Scores]

    @cached_property
    def tensor(self) -> Tensor:
        """All at once, (B, 3, H, W) in [-1, 1]: for small suites."""
        return torch.stack([load_picture(uri) for uri in self.set.files.values()]).float() / 127.5 - 1


@dataclass(frozen=True)
class Evaluated:
    """What a measure is given: one model's images in the order of the shots, and what they are compared with."""

    shots: Sequence[Shot]
    repeats: int
    made: Pictures
    real: Pictures | None
    """Real images"""
    reference: Reference | None
    """Statistics of real images that were given as numbers"""
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
    """Whether it compares with real images"""
    better: ClassVar[str]
    """high or low; empty: neither"""

    @property
    def scorer(self) -> str:
        """Empty: it needs no scorer"""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """Of the metrics that are no category's"""
        ...

    def rows(self, evaluated: Evaluated) -> list[Row]: ...


class Named:
    metric: str

    @property
    def names(self) -> tuple[str, ...]:
        return (self.metric,)


Value = Callable[[Prompt, Sequence[Row]], float]
"""A prompt's own value from the rows of its images"""


def dpg_score(prompt: Prompt, rows: Sequence[Row]) -> float:
    return dpg.score_prompt(dpg_item(prompt).parents, [_answers(row) for row in rows])


def dpg_item(prompt: Prompt) -> dpg.Item:
    """Question ids are numbers, which JSON's keys are not."""
    names = ("parents", "questions", "categories")
    return dpg.Item(prompt.text, *({int(q): value for q, value in prompt.data[name].items()} for name in names))


def _answers(row: Row) -> dict[int, bool]:
    return {int(q): yes for q, yes in json.loads(row["answers"]).items()}


@dataclass(frozen=True)
class Mean(Named):
    """Of a score over all images; with `by_category` of the categories' means, which are given too."""

    metric: str
    scorer: str
    column: str = "score"
    value: Value | None = None
    by_category: bool = False
    scale: float = 1.0
    needs_real: ClassVar[bool] = False
    better: ClassVar[str] = "high"

    def rows(self, evaluated: Evaluated) -> list[Row]:
        prompts = evaluated.prompts
        grouped = evaluated.by_prompt(evaluated.made.scores[self.scorer].rows())
        values = [self.scale * self._value(prompt, rows) for prompt, rows in zip(prompts, grouped, strict=True)]
        if not self.by_category:
            interval = bootstrap.of_mean(values, None, evaluated.settings)
            return [evaluated.row(self.metric, mean_of(values), interval, self.scorer)]
        categories = [prompt.category for prompt in prompts]
        found = []
        for name in dict.fromkeys(categories):
            own = [v for v, category in zip(values, categories, strict=True) if category == name]
            interval = bootstrap.of_mean(own, None, evaluated.settings)
            found.append(evaluated.row(self.metric, mean_of(own), interval, self.scorer, name, len(own)))
        interval = bootstrap.of_mean(values, categories, evaluated.settings)
        overall = mean_of([row["value"] for row in found])
        return [evaluated.row(self.metric, overall, interval, self.scorer, more={"mean": "of categories"}), *found]

    def _value(self, prompt: Prompt, rows: Sequence[Row]) -> float:
        if self.value:
            return self.value(prompt, rows)
        return mean_of([float(row[self.column]) for row in rows])


@dataclass(frozen=True)
class DpgCategories:
    """Over all questions of a category; the reference's own rule (last crop, before zeroing) is given beside it."""

    scorer: str
    names: ClassVar[tuple[str, ...]] = ()
    needs_real: ClassVar[bool] = False
    better: ClassVar[str] = "high"

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


def mean_of(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
