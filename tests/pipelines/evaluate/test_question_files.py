import json

import pytest

from asymflow.metrics.geneval2 import YES
from pipelines.core.config import ConfigError
from pipelines.evaluate.prompts import Prompt
from pipelines.evaluate.question_files import read_geneval2, read_questions

CATS = {
    "prompt": " two cats ", "atom_count": 2, "skills": ["count", "object"],
    "vqa_list": [["How many cats are there?", "two"], ["Are there cats?", "Yes"]],
}  # fmt: skip


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_geneval2_questions_have_their_accepted_answers(tmp_path):
    first, second = read_geneval2(write(tmp_path / "a.jsonl", CATS, {**CATS, "atom_count": 10}), "")
    assert (first.id, first.text, first.category, second.category) == ("00000", "two cats", "2 atoms", "10 atoms")
    counting, existence = first.data["questions"]
    assert counting == {
        "question": "How many cats are there?", "group": "count",
        "answers": ["two", "Two", "2", " two", " Two", " 2"],
    }  # fmt: skip
    assert existence["answers"] == list(YES) and existence["group"] == "object"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"atom_count": "2"}, "line 1: atom_count must be a whole number"),
        ({"atom_count": True}, "line 1: atom_count must be a whole number"),
        ({"vqa_list": []}, r"vqa_list a list of \[question, answer\]"),
        ({"vqa_list": [["Is there a cat?"], ["a", "b"]]}, r"vqa_list a list of \[question, answer\]"),
        ({"skills": ["count"]}, "skills a list of as many texts"),
        ({"skills": ["count", 3]}, "skills a list of as many texts"),
        ({"prompt": ""}, "a prompt must be non-empty text"),
    ],
)
def test_invalid_geneval2_files(tmp_path, change, named):
    with pytest.raises(ConfigError, match=named):
        read_geneval2(write(tmp_path / "a.jsonl", {**CATS, **change}), "")
    with pytest.raises(ConfigError, match="row 1 has no 'atom_count'; it has prompt"):
        read_geneval2(write(tmp_path / "b.jsonl", {"prompt": "x"}), "")


def test_own_questions(tmp_path):
    asked = [{"question": "Is there a cat?", "answers": ["Yes"]}]
    path = write(tmp_path / "a.jsonl", {"prompt": "a cat", "questions": asked, "category": "animals"})
    assert read_questions(path, "") == [Prompt("00000", "a cat", "animals", {"questions": [{**asked[0], "group": ""}]})]


@pytest.mark.parametrize(
    "questions",
    [[], "Is it?", ["Is it?"], [{"question": "Is it?"}], [{"question": "Is it?", "answers": []}],
     [{"question": "", "answers": ["Yes"]}], [{"question": "Is it?", "answers": ["Yes"], "weight": 1}],
     [{"question": "Is it?", "answers": ["Yes"], "group": 3}]],
)  # fmt: skip
def test_invalid_questions(tmp_path, questions):
    with pytest.raises(ConfigError, match="line 1: questions must be a list of objects"):
        read_questions(write(tmp_path / "a.jsonl", {"prompt": "a cat", "questions": questions}), "")


@pytest.mark.parametrize("read", [read_geneval2, read_questions])
def test_missing_files(tmp_path, read):
    with pytest.raises(ConfigError, match="no such file"):
        read(str(tmp_path / "absent.jsonl"), "")
