"""DPG-Bench: do pictures show what a long prompt says, by yes/no questions that depend on one another?

A prompt has questions {id: parent ids}, where 0 stands for no parent, and a few pictures of it, the crops of one grid.
A yes/no model answers every question for every crop.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from asymflow.outside_text import parse_table, read_text

Parents = Mapping[int, Sequence[int]]
Answers = Mapping[int, bool]
"""Of one crop: is it a yes?"""

COLUMNS = (
    "item_id", "text", "keywords", "proposition_id", "dependency", "category_broad", "category_detailed", "tuple",
    "question_natural_language",
)  # fmt: skip


@dataclass
class Item:
    """A prompt with its questions; the dictionaries are by question, in the file's order."""

    text: str
    parents: dict[int, list[int]] = field(default_factory=dict)
    questions: dict[int, str] = field(default_factory=dict)
    categories: dict[int, str] = field(default_factory=dict)


def read_questions(path: str | Path, official: bool = False) -> dict[str, Item]:
    """{item_id: its questions} of the benchmark's CSV, in its order.

    `official` drops the first row of data, as the reference does. A question that depends on the dropped one makes the
    reference fail on that prompt, which it then leaves out of every mean; so the prompt is left out here too.

    Raises:
        ValueError: columns are missing, there are no rows, or a row makes no sense; the line is named.
    """
    return parse_questions(read_text(path), str(path), official)


def parse_questions(text: str, path: str, official: bool = False) -> dict[str, Item]:
    """Parse the text of the benchmark's CSV; `path` names it in errors. See `read_questions`."""
    items: dict[str, Item] = {}
    dropped: tuple[str, int] | None = None
    last = ""
    for line, row in parse_table(text, path, COLUMNS):
        where = f"{path} line {line}"
        name, question = row["item_id"], _identifier(row["proposition_id"], where)
        if not (name and row["text"] and row["question_natural_language"] and row["category_broad"]):
            raise ValueError(f"{where}: the item's id, its text, a question or its category is empty")
        parents = _dependencies(row["dependency"], where)
        if official and dropped is None:
            dropped = name, question
            continue
        if name in items and name != last:
            raise ValueError(f"{where}: item {name} has other rows further up, which are not next to this")
        item = items.setdefault(name, Item(row["text"]))
        if question in item.parents:
            raise ValueError(f"{where}: question {question} of item {name} is there twice")
        item.parents[question] = parents
        item.questions[question] = row["question_natural_language"]
        item.categories[question] = row["category_broad"]
        last = name
    if dropped and dropped[0] in items and any(dropped[1] in ids for ids in items[dropped[0]].parents.values()):
        del items[dropped[0]]
    if not items:
        raise ValueError(f"{path} has no questions")
    for name, item in items.items():
        _check_parents(item.parents, f"item {name}: ")
    return items


def _identifier(text: str, where: str) -> int:
    if not text.strip().isdecimal() or int(text) == 0:
        raise ValueError(f"{where}: proposition_id is {text!r}; expected a whole number above 0")
    return int(text)


def _dependencies(text: str, where: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ValueError(f"{where}: dependency is {text!r}; expected whole numbers with commas between, 0 for none")
    return [int(part) for part in parts]


def _check_parents(parents: Parents, prefix: str = "") -> None:
    if not parents:
        raise ValueError(f"{prefix}there are no questions")
    for question, ids in parents.items():
        unknown = [str(parent) for parent in ids if parent and parent not in parents]
        if unknown:
            raise ValueError(f"{prefix}question {question} depends on {', '.join(unknown)}, which is not there")


def question_scores(parents: Parents, answers: Answers) -> dict[int, float]:
    """Of one crop: 1 for a yes; 0 for a no, and for every question of which a parent is 0.

    Questions are gone through once, in their order, and what is set to 0 counts as such for those that follow: down a
    chain a no takes all with it, as long as parents stand before their children. A child that stands before its parent
    sees only the parent's own answer.

    Raises:
        ValueError: there are no questions, an answer is missing, or is to no question, or a parent is unknown.
    """
    _check_parents(parents)
    missing, extra = [q for q in parents if q not in answers], [q for q in answers if q not in parents]
    if missing:
        raise ValueError(f"no answer to question {', '.join(map(str, missing))}")
    if extra:
        raise ValueError(f"there is no question {', '.join(map(str, extra))}, but an answer to it")
    scores = {question: float(bool(answers[question])) for question in parents}
    for question, ids in parents.items():
        if any(parent and scores[parent] == 0 for parent in ids):
            scores[question] = 0.0
    return scores


def score_prompt(parents: Parents, answers: Sequence[Answers], official: bool = False) -> float:
    """In [0, 1]: the mean over questions of each crop, then over crops.

    `official` is for the prompt that the reference's file begins with, of which it drops the first question; those that
    depend on it depend on nothing then. (The reference itself fails on a prompt with such: see `read_questions`.)

    Raises ValueError as `question_scores` does, and without crops.
    """
    if not answers:
        raise ValueError("there are no crops")
    if official:
        for crop in answers:
            question_scores(parents, crop)  # which says what is missing, the first row or any other
        dropped = next(iter(parents))
        parents = {q: [p for p in ids if p != dropped] for q, ids in parents.items() if q != dropped}
        answers = [{question: yes for question, yes in crop.items() if question != dropped} for crop in answers]
    crops = [question_scores(parents, crop) for crop in answers]
    return sum(sum(scores.values()) / len(scores) for scores in crops) / len(crops)


def category_scores(
    items: Mapping[str, Item], answers: Mapping[str, Sequence[Answers]], official: bool = False
) -> dict[str, float]:
    """{category_broad: 0 to 100}, the mean over all its questions of all items and crops; sorted by name.

    `answers` has the crops of every item. `official` takes the answers to the last crop only, before a parent's no sets
    them to 0, as the reference does. (It reads the category off the front of the `tuple` column, which says the same.)

    Raises:
        ValueError: as `score_prompt` does; or items and answers are not of the same prompts.
    """
    if items.keys() != answers.keys():
        odd = sorted(items.keys() ^ answers.keys())
        raise ValueError(f"questions and answers are of different items, {', '.join(odd[:5])} among them")
    values: dict[str, list[float]] = {}
    for name, item in items.items():
        if not answers[name]:
            raise ValueError(f"there are no crops of item {name}")
        crops = [question_scores(item.parents, crop) for crop in answers[name]]
        if official:
            crops = [{question: float(bool(yes)) for question, yes in answers[name][-1].items()}]
        for scores in crops:
            for question, score in scores.items():
                values.setdefault(item.categories[question], []).append(score)
    return {category: 100 * sum(found) / len(found) for category, found in sorted(values.items())}


def total(scores: Sequence[float]) -> float:
    """0 to 100, the benchmark's number: the mean of the prompts' scores. ValueError without any, or outside [0, 1]."""
    if not scores:
        raise ValueError("there are no prompts")
    if not all(0 <= score <= 1 for score in scores):
        raise ValueError("a prompt's score is not in [0, 1]")
    return 100 * sum(scores) / len(scores)
