"""DPG-Bench (Hu et al. 2024): how much of a long prompt images show, by yes/no questions with dependencies.

A prompt has questions {id: parent ids}, where 0 stands for no parent, and a few images, the crops of one grid. A yes/no
model answers each question for each crop.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from asymflow.text_files import parse_table

Parents = Mapping[int, Sequence[int]]
Answers = Mapping[int, bool]
"""Answers about one crop by question; True: yes"""

COLUMNS = (
    "item_id", "text", "keywords", "proposition_id", "dependency", "category_broad", "category_detailed", "tuple",
    "question_natural_language",
)  # fmt: skip


@dataclass
class Item:
    """Prompt with its questions; the dictionaries are by question, in the file's order."""

    text: str
    """The prompt"""
    parents: dict[int, list[int]] = field(default_factory=dict)
    """IDs of the parents of each question, 0 for none"""
    questions: dict[int, str] = field(default_factory=dict)
    """Text of each question"""
    categories: dict[int, str] = field(default_factory=dict)
    """Broad category of each question"""


def parse_questions(text: str, path: str, official: bool = False) -> dict[str, Item]:
    """Parse the text of the benchmark's CSV.

    Args:
        text: The text.
        path: Name of the file, for errors.
        official: Drop the first row of data, as the reference does. The reference then fails on a prompt with a
            question that depends on the dropped one and leaves it out of every mean; such a prompt is left out here
            too.

    Returns:
        Items by item_id, in the file's order.

    Raises:
        ValueError: If columns are missing, there are no rows, or a row is invalid; it gives the line.
    """
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
            raise ValueError(f"{prefix}question {question} depends on {', '.join(unknown)}, which does not exist")


def question_scores(parents: Parents, answers: Answers) -> dict[int, float]:
    """Return the scores of one crop: 1 for a yes; 0 for a no, and for each question that has a parent with score 0.

    Questions are processed once, in order, and later ones use the scores of earlier ones: a no propagates down a chain
    as long as parents precede their children. A child that precedes its parent depends only on the parent's own answer.

    Args:
        parents: Parents of each question.
        answers: Answer to each question.

    Returns:
        Scores by question.

    Raises:
        ValueError: If there are no questions, answers and questions do not match, or a parent is unknown.
    """
    _check_parents(parents)
    missing, extra = [q for q in parents if q not in answers], [q for q in answers if q not in parents]
    if missing:
        raise ValueError(f"no answer to question {', '.join(map(str, missing))}")
    if extra:
        raise ValueError(f"there is an answer to question {', '.join(map(str, extra))}, which does not exist")
    scores = {question: float(bool(answers[question])) for question in parents}
    for question, ids in parents.items():
        if any(parent and scores[parent] == 0 for parent in ids):
            scores[question] = 0.0
    return scores


def score_prompt(parents: Parents, answers: Sequence[Answers], official: bool = False) -> float:
    """Return the score of a prompt: the mean over questions of each crop, then over crops.

    Args:
        parents: Parents of each question, in the file's order.
        answers: Answers of each crop.
        official: Drop the first question and the dependencies on it, as the reference does for the first prompt of its
            file. (The reference itself fails on such dependencies: see `parse_questions`.)

    Returns:
        The score in [0, 1].

    Raises:
        ValueError: As in `question_scores`, or if there are no crops.
    """
    if not answers:
        raise ValueError("there are no crops")
    if official:
        for crop in answers:
            question_scores(parents, crop)  # raises for any missing answer, including the first
        dropped = next(iter(parents))
        parents = {q: [p for p in ids if p != dropped] for q, ids in parents.items() if q != dropped}
        answers = [{question: yes for question, yes in crop.items() if question != dropped} for crop in answers]
    crops = [question_scores(parents, crop) for crop in answers]
    return sum(sum(scores.values()) / len(scores) for scores in crops) / len(crops)


def category_scores(
    items: Mapping[str, Item], answers: Mapping[str, Sequence[Answers]], official: bool = False
) -> dict[str, float]:
    """Return the mean score of each category over all its questions of all items and crops.

    Args:
        items: Items of the benchmark.
        answers: Answers of each crop of each item.
        official: Use the answers to the last crop only, ignoring parents, as the reference does. (It reads the category
            from the `tuple` column, which has the same one.)

    Returns:
        Scores from 0 to 100 by category_broad, sorted by name.

    Raises:
        ValueError: As in `score_prompt`, or if items and answers do not match.
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
    """Return the benchmark's score: the mean of the prompts' scores.

    Args:
        scores: Scores in [0, 1].

    Returns:
        The score from 0 to 100.

    Raises:
        ValueError: If there are no scores, or one is outside [0, 1].
    """
    if not scores:
        raise ValueError("there are no prompts")
    if not all(0 <= score <= 1 for score in scores):
        raise ValueError("a prompt's score is not in [0, 1]")
    return 100 * sum(scores) / len(scores)
