"""Measures of suites whose prompts have several parts, such as questions about an image, and the values of a prompt."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from asymflow.metrics import geneval2, oneig, unigenbench
from asymflow.metrics.long_text import count_matches
from pipelines.evaluate import bootstrap
from pipelines.evaluate.measures import MeasureInput, Row, mean_of
from pipelines.evaluate.prompts import Prompt

Part = tuple[str, float, float]
"""(category, numerator, denominator)"""
Parts = Callable[[Prompt, Sequence[Row]], Iterable[Part]]
"""Returns the parts of a prompt from the rows of its images"""


@dataclass(frozen=True)
class Pooled:
    """Ratio of sums over all parts of all prompts, by category.

    With a denominator of 1 per part, it is the mean over parts. Categories are sorted, numbers by their value.
    """

    metric: str
    scorer: str
    parts: Parts
    overall: bool = False
    """Whether a first row pools all categories"""
    scale: float = 100.0
    needs_real: ClassVar[bool] = False
    better: ClassVar[str] = "high"

    @property
    def names(self) -> tuple[str, ...]:
        """Return the metric's name, if it has a row over all categories."""
        return (self.metric,) if self.overall else ()

    def rows(self, evaluated: MeasureInput) -> list[Row]:
        """Return a row per category. Its prompts are those that have parts of the category."""
        sums: dict[str, list[tuple[float, float]]] = {"": []} if self.overall else {}
        grouped = evaluated.by_prompt(evaluated.made.scores[self.scorer].rows())
        for prompt, rows in zip(evaluated.prompts, grouped, strict=True):
            own: dict[str, tuple[float, float]] = {}
            for category, numerator, denominator in self.parts(prompt, rows):
                for name in dict.fromkeys(("", category) if self.overall else (category,)):
                    before = own.get(name, (0.0, 0.0))
                    own[name] = before[0] + numerator, before[1] + denominator
            for name, pair in own.items():
                sums.setdefault(name, []).append(pair)
        found = []
        for name in sorted(sums, key=_by_number):
            numerators, denominators = zip(*sums[name], strict=True)
            value = self.scale * math.fsum(numerators) / math.fsum(denominators)
            interval = bootstrap.ratio_interval([self.scale * n for n in numerators], denominators, evaluated.settings)
            more = {"pooled": "parts of the category" if name else "all parts"}
            row = evaluated.row(self.metric, value, interval, self.scorer, name, len(numerators), more)
            found.append(row)
        return found


class PooledErrors(Pooled):
    """Such a ratio that should be small."""

    better: ClassVar[str] = "low"


def _by_number(name: str) -> tuple[int, str]:
    digits = name.split(" ")[0]
    return int(digits) if digits.isdecimal() else 0, name


def soft_tifa_am(prompt: Prompt, rows: Sequence[Row]) -> float:
    """Return a prompt's Soft-TIFA AM of GenEval 2, a mean over its images."""
    return mean_of([geneval2.soft_tifa_am(json.loads(row["probabilities"])) for row in rows])


def soft_tifa_gm(prompt: Prompt, rows: Sequence[Row]) -> float:
    """Return a prompt's Soft-TIFA GM of GenEval 2, a mean over its images."""
    return mean_of([geneval2.soft_tifa_gm(json.loads(row["probabilities"])) for row in rows])


def tifa(prompt: Prompt, rows: Sequence[Row]) -> float:
    """Return a prompt's TIFA, a mean over its images."""
    answers = [question["answers"] for question in prompt.data["questions"]]
    return mean_of([geneval2.tifa(json.loads(row["words"]), answers) for row in rows])


def probability_by_group(prompt: Prompt, rows: Sequence[Row]) -> list[Part]:
    """Return a part per image and question: the probability of the accepted answers, by the question's group."""
    return [
        (question["group"], probability, 1.0)
        for row in rows
        for question, probability in zip(prompt.data["questions"], json.loads(row["probabilities"]), strict=True)
    ]


def soft_tifa_gm_by_category(prompt: Prompt, rows: Sequence[Row]) -> list[Part]:
    """Return a part per image: its Soft-TIFA GM, by the prompt's category."""
    return [(prompt.category, geneval2.soft_tifa_gm(json.loads(row["probabilities"])), 1.0) for row in rows]


def oneig_alignment(prompt: Prompt, rows: Sequence[Row]) -> list[Part]:
    """Return a part per image: its alignment score, by the prompt's category."""
    parents = prompt.data["parents"]
    answers = [[word == oneig.YES for word in json.loads(row["words"])] for row in rows]
    scores = [oneig.alignment_score(parents, dict(zip(parents, own, strict=True))) for own in answers]
    return [(prompt.category, score, 1.0) for score in scores]


def english_matches(prompt: Prompt, rows: Sequence[Row]) -> list[Part]:
    """Return a part per image: how many of the expected words it shows, by the prompt's category."""
    return [(prompt.category, *count_matches(prompt.data["text"], row["reply"], chinese=False)) for row in rows]


def chinese_matches(prompt: Prompt, rows: Sequence[Row]) -> list[Part]:
    """Return a part per image: how many of the expected characters it shows, by the prompt's category."""
    return [(prompt.category, *count_matches(prompt.data["text"], row["reply"], chinese=True)) for row in rows]


def points_met(prompt: Prompt, rows: Sequence[Row]) -> list[Part]:
    """Return a part per image and test point, by the test point; an unreadable reply meets none."""
    points = prompt.data["testpoints"]
    return [
        (point, float(score), 1.0)
        for row in rows
        for point, score in zip(
            points, unigenbench.parse_scores(row["reply"], len(points)) or [0] * len(points), strict=True
        )
    ]


def primary_dimensions(prompt: Prompt, rows: Sequence[Row]) -> list[Part]:
    """Return the parts of `points_met`, by the primary dimension."""
    return [(unigenbench.primary_dimension(point), met, one) for point, met, one in points_met(prompt, rows)]


def unreadable_replies(prompt: Prompt, rows: Sequence[Row]) -> list[Part]:
    """Return a part per image: 1 for a reply without a list of scores."""
    count = len(prompt.data["testpoints"])
    return [("", float(unigenbench.parse_scores(row["reply"], count) is None), 1.0) for row in rows]
