"""Self-test of suites that a vision-language model judges: question files, and replies with known scores."""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.evaluate.prompts import Prompt, Reader
from pipelines.evaluate.question_files import read_geneval2, read_questions

Judged = tuple[list[Prompt], dict[str, list[dict[str, Any]]]]
"""Prompts, and the rows of each scorer"""


def _read(read: Reader, lines: Sequence[Mapping[str, Any]]) -> list[Prompt]:
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "questions.jsonl"
        file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), "utf-8")
        return read(str(file), "")


def _answered(probabilities: Sequence[Sequence[float]], words: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    pairs = zip(probabilities, words, strict=True)
    return [{"probabilities": json.dumps(own), "words": json.dumps(text)} for own, text in pairs]


def _geneval2() -> Judged:
    lines = [
        {
            "prompt": "two red cats", "atom_count": 3, "skills": ["count", "attribute", "object"],
            "vqa_list": [["How many cats are there?", "two"], ["Are the cats red?", "Yes"], ["Are there cats?", "Yes"]],
        },
        {
            "prompt": "a dog under a bench", "atom_count": 2, "skills": ["object", "object", "position"],
            "vqa_list": [["Is there a dog?", "Yes"], ["Is there a bench?", "Yes"], ["Is it under it?", "Yes"]],
        },
    ]  # fmt: skip
    rows = _answered([[0.25, 0.5, 1.0], [0.8, 0.1, 0.1]], [["2", "No", "Yes"], ["YES", "no", "no"]])
    return _read(read_geneval2, lines), {"geneval2": rows}


def _questions() -> Judged:
    lines = [
        {"prompt": "a cat", "questions": [{"question": "Is there a cat?", "answers": ["Yes"], "group": "object"}]},
        {
            "prompt": "a blue dog",
            "questions": [
                {"question": "Is there a dog?", "answers": ["Yes"], "group": "object"},
                {"question": "Which color is it?", "answers": ["blue", "Blue"], "group": "color"},
            ],
        },
    ]
    return _read(read_questions, lines), {"judge": _answered([[0.9], [0.5, 0.1]], [["Yes"], ["Yes", "red"]])}


JUDGED: Mapping[str, Callable[[], Judged]] = {"geneval2": _geneval2, "questions": _questions}
