"""Self-test of suites that a vision-language model judges: question files, and replies with known scores."""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.evaluate.prompts import Prompt, Reader
from pipelines.evaluate.question_files import (
    read_geneval2,
    read_long_text,
    read_oneig,
    read_questions,
    read_unigenbench,
)

Judged = tuple[list[Prompt], dict[str, list[dict[str, Any]]]]
"""Prompts, and the rows of each scorer"""


def _read(read: Reader, lines: Sequence[Mapping[str, Any]]) -> list[Prompt]:
    return _read_text(read, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def _read_text(read: Reader, text: str) -> list[Prompt]:
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "questions"
        file.write_text(text, "utf-8")
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


def _long_text_en() -> Judged:
    lines = [
        {"prompt": "a sign", "text": ["Open daily,", "Closed!"], "category": "sign"},
        {"prompt": "a poster", "text": ["Big sale"], "category": "poster"},
    ]
    rows = [{"reply": "OPEN\nclosed, closed"}, {"reply": "No text recognized."}]
    return _read(read_long_text, lines), {"long_text": rows}


def _long_text_zh() -> Judged:
    lines = [
        {"prompt": "a sign", "text": ["开门"], "category": "sign"},
        {"prompt": "a poster", "text": ["关 门", "A1"], "category": "poster"},
    ]
    return _read(read_long_text, lines), {"long_text": [{"reply": "开 店"}, {"reply": "门关，A1"}]}


def _unigenbench() -> Judged:
    points = [["Style", "Attribute - Color"], ["Attribute - Color", "Attribute - Size", "World Knowledge"]]
    lines = ["index,prompt_en,sub_dims_en"]
    for i, names in enumerate(points):
        dimensions = json.dumps({"Testpoints": names, "Testpoint Description": names}).replace('"', '""')
        lines.append(f'{i},prompt {i},"{dimensions}"')
    rows = [{"reply": "<analysis>['', '']</analysis>\n<score>[1, 1]</score>"}, {"reply": "<score>[1, 1]</score>"}]
    return _read_text(read_unigenbench, "\n".join(lines)), {"unigenbench": rows}


def _oneig() -> Judged:
    parents = {"anime": {"1": [0], "2": [1], "3": [2]}, "human": {"1": [0], "2": [0]}, "object": {"1": [0]}}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "scripts", "alignment", "Q_D")
        folder.mkdir(parents=True)
        for name, dependency in parents.items():
            item = {"question": json.dumps(dict.fromkeys(dependency, "Is it?")), "dependency": json.dumps(dependency)}
            Path(folder, f"{name}.json").write_text(json.dumps({"000": item}), "utf-8")
        rows = ["Anime_Stylization,000,a", "Portrait,000,b", "General_Object,000,c", "General_Object,000,d"]
        rows = ["category,id,prompt_en", *rows, "Text_Rendering,000,e"]
        Path(scratch, "OneIG-Bench.csv").write_text("\n".join(rows), "utf-8")
        prompts = read_oneig(scratch, "")
    words = [["No", "Yes", "Yes"], ["Yes", "yes"], ["Yes"], ["No"]]
    return prompts, {"oneig": _answered([[0.5] * len(own) for own in words], words)}


JUDGED: Mapping[str, Callable[[], Judged]] = {
    "geneval2": _geneval2,
    "questions": _questions,
    "longtext_en": _long_text_en,
    "longtext_zh": _long_text_zh,
    "unigenbench": _unigenbench,
    "oneig_alignment": _oneig,
}
