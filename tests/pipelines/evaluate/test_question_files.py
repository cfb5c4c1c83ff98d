import json

import pytest

from asymflow.metrics.geneval2 import YES
from pipelines.core.config import ConfigError
from pipelines.evaluate.prompts import Prompt
from pipelines.evaluate.question_files import (
    read_geneval2,
    read_long_text,
    read_oneig,
    read_questions,
    read_unigenbench,
)

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
    assert existence["answers"] == list(YES)
    assert existence["group"] == "object"


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


def test_long_texts(tmp_path):
    row = {"prompt": "a sign", "text": ["Open", "开门"], "category": "sign", "prompt_id": 7}
    assert read_long_text(write(tmp_path / "a.jsonl", row), "") == [
        Prompt("00000", "a sign", "sign", {"text": ["Open", "开门"]})
    ]
    for text in ("Open", [], ["…"], [3]):
        with pytest.raises(ConfigError, match="line 1: text must be a list of the texts"):
            read_long_text(write(tmp_path / "a.jsonl", {**row, "text": text}), "")


def unigenbench(path, language, points, descriptions):
    dimensions = json.dumps({"Testpoints": points, "Testpoint Description": descriptions}, ensure_ascii=False)
    quoted = dimensions.replace('"', '""')
    path.write_text(f'index,prompt_{language},sub_dims_{language}\n12,a panda,"{quoted}"\n')
    return str(path)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_test_points_of_both_languages(tmp_path, language):
    path = unigenbench(tmp_path / "a.csv", language, ["Style", "Attribute - Color"], ["水墨画", "black"])
    data = {"testpoints": ["Style", "Attribute - Color"], "descriptions": ["水墨画", "black"]}
    assert read_unigenbench(path, "") == [Prompt("12", "a panda", data=data)]


@pytest.mark.parametrize(("points", "descriptions"), [([], []), (["Style"], []), ("Style", "oil"), (["Style"], [1])])
def test_invalid_test_points(tmp_path, points, descriptions):
    with pytest.raises(ConfigError, match="line 2: Testpoints and Testpoint Description must be lists"):
        read_unigenbench(unigenbench(tmp_path / "a.csv", "en", points, descriptions), "")
    (tmp_path / "b.csv").write_text("index,prompt\n1,a\n")
    with pytest.raises(ConfigError, match="no column prompt_en, sub_dims_en"):
        read_unigenbench(str(tmp_path / "b.csv"), "")


def write_oneig(root, **change):
    folder = root / "scripts/alignment/Q_D"
    folder.mkdir(parents=True, exist_ok=True)
    item = {"question": {"1": "Is it?", "2": "Is it red?"}, "dependency": {"1": [0], "2": [1]}} | change
    for name in ("anime", "human", "object"):
        (folder / f"{name}.json").write_text(json.dumps({"003": item}))
    (root / "OneIG-Bench.csv").write_text(
        "category,id,prompt_en\nPortrait,003,a face\nText_Rendering,003,a sign\nAnime_Stylization,003,a cat\n"
    )
    return str(root)


@pytest.mark.parametrize("encode", [lambda found: found, json.dumps])
def test_questions_of_three_categories_with_their_parents(tmp_path, encode):
    questions, parents = encode({"1": "Is it?", "2": "Is it red?"}), encode({"1": [0], "2": [1]})
    first, second = read_oneig(write_oneig(tmp_path, question=questions, dependency=parents), "")
    assert (first.id, first.text, first.category) == ("human-003", "a face", "Portrait")
    assert second.id == "anime-003"
    assert first.data["parents"] == {"1": [0], "2": [1]}
    assert [question["question"] for question in first.data["questions"]] == ["Is it?", "Is it red?"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"dependency": {"1": [0]}}, "line 2: the questions of Portrait 003 and their dependencies do not fit"),
        ({"dependency": {"1": [0], "2": [5]}}, "a question depends on 5, which does not exist"),
        ({"dependency": {"1": [0], "2": 1}}, "a dependency is not a list of whole numbers"),
        ({"question": ["Is it?"]}, "are a list; expected an object"),
    ],
)
def test_invalid_dependencies(tmp_path, change, named):
    with pytest.raises(ConfigError, match=named):
        read_oneig(write_oneig(tmp_path, **change), "")


@pytest.mark.parametrize("read", [read_geneval2, read_questions, read_long_text, read_unigenbench, read_oneig])
def test_missing_files(tmp_path, read):
    with pytest.raises(ConfigError, match="no such file"):
        read(str(tmp_path / "absent.jsonl"), "")
