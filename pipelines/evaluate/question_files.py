"""Question files of the benchmarks that a vision-language model judges, as prompts.

A prompt's `data["questions"]` is a list of {question, answers, group}: the question, its accepted answers (their
first tokens count), and what a breakdown groups it by.
"""

from collections.abc import Mapping
from typing import Any

from asymflow.metrics import oneig
from asymflow.metrics.geneval2 import accepted_answers
from asymflow.metrics.long_text import split_units
from asymflow.text_files import parse_json, parse_json_lines, parse_table
from pipelines.core import storage
from pipelines.data.prompt_files import read_text, to_prompt, value_at
from pipelines.evaluate.prompts import Prompt, as_config_error

_TEST_POINTS = ("Testpoints", "Testpoint Description")
_ONEIG_FILES = {"Anime_Stylization": "anime", "Portrait": "human", "General_Object": "object"}


def read_geneval2(uri: str, column: str) -> list[Prompt]:
    """Read `geneval2_data.jsonl`, each line with prompt, atom_count, vqa_list (question, answer) and skills."""
    prompts = []
    with as_config_error(uri):
        for line, row in parse_json_lines(read_text(uri), uri):
            text = to_prompt(value_at(row, "prompt", uri, line), uri, line)
            atoms = value_at(row, "atom_count", uri, line)
            pairs, skills = value_at(row, "vqa_list", uri, line), value_at(row, "skills", uri, line)
            if type(atoms) is not int or not _are_pairs(pairs) or not _are_texts(skills) or len(pairs) != len(skills):
                raise ValueError(
                    f"{uri}: line {line}: atom_count must be a whole number, vqa_list a list of [question, answer], "
                    "and skills a list of as many texts"
                )
            questions = [
                {"question": question, "answers": accepted_answers(question, answer), "group": skill}
                for (question, answer), skill in zip(pairs, skills, strict=True)
            ]
            prompts.append(Prompt(f"{line - 1:05}", text, f"{atoms} atoms", {"questions": questions}))
    return prompts


def read_questions(uri: str, column: str) -> list[Prompt]:
    """Read JSON lines of {prompt, questions: [{question, answers, group}, ...]}, with optional category and group."""
    prompts = []
    with as_config_error(uri):
        for line, row in parse_json_lines(read_text(uri), uri):
            text = to_prompt(value_at(row, "prompt", uri, line), uri, line)
            questions = value_at(row, "questions", uri, line)
            if not isinstance(questions, list) or not questions or not all(map(_is_question, questions)):
                raise ValueError(
                    f"{uri}: line {line}: questions must be a list of objects with a question, a list of answers, and "
                    "optionally a group"
                )
            own = [{"group": "", **question} for question in questions]
            prompts.append(Prompt(f"{line - 1:05}", text, str(row.get("category", "")), {"questions": own}))
    return prompts


def read_long_text(uri: str, column: str) -> list[Prompt]:
    """Read `text_prompts.jsonl` or `text_prompts_zh.jsonl`, each line with prompt, text (a list) and category."""
    prompts = []
    with as_config_error(uri):
        for line, row in parse_json_lines(read_text(uri), uri):
            prompt = to_prompt(value_at(row, "prompt", uri, line), uri, line)
            texts = value_at(row, "text", uri, line)
            if not _are_texts(texts) or not split_units(" ".join(texts), chinese=True):
                raise ValueError(f"{uri}: line {line}: text must be a list of the texts that the image should show")
            category = str(value_at(row, "category", uri, line))
            prompts.append(Prompt(f"{line - 1:05}", prompt, category, {"text": texts}))
    return prompts


def read_unigenbench(uri: str, column: str) -> list[Prompt]:
    """Read `test_prompts_<language>.csv`: index, and prompt and sub_dims with the language's suffix."""
    prompts = []
    with as_config_error(uri):
        content = read_text(uri)
        suffix = "_zh" if "prompt_zh" in content.partition("\n")[0] else "_en"
        for line, row in parse_table(content, uri, ["index", f"prompt{suffix}", f"sub_dims{suffix}"]):
            dimensions = parse_json(row[f"sub_dims{suffix}"], f"{uri} line {line}: sub_dims{suffix}")
            points, descriptions = (value_at(dimensions, name, uri, line) for name in _TEST_POINTS)
            if not _are_texts(points) or not _are_texts(descriptions) or len(points) != len(descriptions):
                raise ValueError(f"{uri} line {line}: {' and '.join(_TEST_POINTS)} must be lists of as many texts")
            text = to_prompt(row[f"prompt{suffix}"], uri, line)
            prompts.append(Prompt(row["index"], text, data={"testpoints": points, "descriptions": descriptions}))
    return prompts


def read_oneig(uri: str, column: str) -> list[Prompt]:
    """Read OneIG-Benchmark's folder: `OneIG-Bench.csv`, and the questions in `scripts/alignment/Q_D`."""
    table = storage.join(uri, "OneIG-Bench.csv")
    prompts = []
    with as_config_error(uri):
        asked = {}
        for category, name in _ONEIG_FILES.items():
            file = storage.join(uri, "scripts/alignment/Q_D", f"{name}.json")
            asked[category] = parse_json(read_text(file), file)
        for line, row in parse_table(read_text(table), table, ["category", "id", "prompt_en"]):
            if row["category"] not in asked:
                continue  # its prompts have other scores
            where = f"{table} line {line}: the questions of {row['category']} {row['id']}"
            item = value_at(asked[row["category"]], row["id"], where, line)
            texts, parents = (
                _as_object(value_at(item, part, where, line), where) for part in ("question", "dependency")
            )
            if not texts or texts.keys() != parents.keys() or not _are_texts(list(texts.values())):
                raise ValueError(f"{where} and their dependencies do not fit")
            if not all(isinstance(own, list) and all(type(one) is int for one in own) for own in parents.values()):
                raise ValueError(f"{where}: a dependency is not a list of whole numbers")
            oneig.alignment_score(parents, dict.fromkeys(texts, True))  # checks that the parents exist
            questions = [{"question": text, "answers": [oneig.YES], "group": ""} for text in texts.values()]
            data = {"questions": questions, "parents": parents}
            text = to_prompt(row["prompt_en"], table, line)
            prompts.append(Prompt(f"{_ONEIG_FILES[row['category']]}-{row['id']}", text, row["category"], data))
    return prompts


def _as_object(found: Any, where: str) -> dict[str, Any]:
    """Return an object that may be JSON in a string."""
    value = parse_json(found, where) if isinstance(found, str) else found
    if not isinstance(value, dict):
        raise ValueError(f"{where} are a {type(value).__name__}; expected an object")
    return value


def _is_question(found: Any) -> bool:
    return (
        isinstance(found, Mapping)
        and found.keys() <= {"question", "answers", "group"}
        and _are_texts([found.get("question"), found.get("group", "no group")])
        and _are_texts(found.get("answers"))
    )


def _are_texts(found: Any) -> bool:
    return isinstance(found, list) and bool(found) and all(isinstance(one, str) and one.strip() for one in found)


def _are_pairs(found: Any) -> bool:
    return isinstance(found, list) and bool(found) and all(_are_texts(pair) and len(pair) == 2 for pair in found)
