import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from training_files import write_curated

from pipelines.core import artifacts
from pipelines.core.config import ConfigError
from pipelines.data.curate.config import CurateSettings
from pipelines.data.datasets import find_test_split
from pipelines.evaluate.prompts import (
    Prompt,
    list_generations,
    read_captions,
    read_dpg,
    read_geneval,
    read_held_out,
    read_hpsv3,
    read_labels,
)

HEADER = (
    "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,question_natural_language"
)


def write(path, *rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return str(path)


def test_indices_count_prompts_times_repeats_and_keys_stay_when_prompts_are_added():
    prompts = [Prompt("a", "a cat"), Prompt("b", "a dog"), Prompt("c", "a cat")]
    generations = list_generations(prompts, 2)
    assert [(generation.index, generation.prompt.id) for generation in generations] == list(enumerate("aabbcc"))
    assert [generation.key for generation in list_generations(prompts[:2], 2)] == [
        generation.key for generation in generations[:4]
    ]
    assert len({generation.key for generation in generations}) == 6
    other = Prompt("a", "a cat", data={"tag": "colors"})
    assert list_generations([other], 1)[0].key != generations[0].key  # a file for another purpose


@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet"])
def test_captions_of_every_kind_of_file(tmp_path, kind):
    texts = ["a red cat", "två hundar – utomhus"]
    path = tmp_path / f"captions.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"prompt": texts, "id": [3, 4]}), path)
    else:
        write(path, *(texts if kind == "txt" else [{"prompt": text} for text in texts]))
    assert [(p.id, p.text) for p in read_captions(str(path), "prompt")] == [("00000", texts[0]), ("00001", texts[1])]


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("a.jsonl", [{"caption": "x"}], "row 1 has no 'prompt'; it has caption"),
        ("a.jsonl", [{"prompt": "x"}, "{oops"], "line 2 is not JSON"),
        ("a.jsonl", [{"prompt": 3}], "row 1 has 3; a prompt must be"),
        ("a.jsonl", [{"prompt": "  "}], "row 1 has .* a prompt must be"),
    ],
)
def test_invalid_captions(tmp_path, name, rows, message):
    with pytest.raises(ConfigError, match=message):
        read_captions(write(tmp_path / name, *rows), "prompt")


def test_missing_and_binary_files(tmp_path):
    for read in (read_captions, read_geneval, read_dpg):
        with pytest.raises(ConfigError, match="no such file"):
            read(str(tmp_path / "absent"), "prompt")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8 text"):
        read_captions(str(tmp_path / "bytes.txt"), "prompt")
    pq.write_table(pa.table({"caption": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match="a.parquet has no column 'prompt'; it has caption"):
        read_captions(str(tmp_path / "a.parquet"), "prompt")


def test_hpsv3_has_twelve_categories(tmp_path):
    for i in range(12):
        rows = [{"caption": f"{i} {j}", "category": "x", "image_file": "y"} for j in range(2)]
        (tmp_path / f"benchmark_Kind{i:02}.json").write_text(json.dumps(rows))
    prompts = read_hpsv3(str(tmp_path), "")
    assert len(prompts) == 24
    assert prompts[3] == Prompt("Kind01-0001", "1 1", "Kind01")
    (tmp_path / "benchmark_Kind03.json").unlink()
    with pytest.raises(ConfigError, match="has 11 files benchmark_<Category>.json, not 12"):
        read_hpsv3(str(tmp_path), "")


def test_geneval_requests_are_kept(tmp_path):
    row = {"tag": "counting", "include": [{"class": "cat", "count": 2}], "exclude": [{"class": "cat", "count": 3}]}
    rows = [{**row, "prompt": "two cats"}, {"tag": "colors", "include": [], "prompt": "x"}]
    path = write(tmp_path / "metadata.jsonl", *rows)
    first, second = read_geneval(path, "")
    assert (first.text, first.category, first.data) == ("two cats", "counting", row)
    assert second.data["exclude"] == []
    with pytest.raises(ConfigError, match="line 1 has the tag 'shape'"):
        read_geneval(write(tmp_path / "b.jsonl", {"tag": "shape", "include": [], "prompt": "x"}), "")


def test_dpg_questions_are_serialized_as_json(tmp_path):
    rows = "a,a cat,,1,0,entity,whole,t,Is there a cat?", "a,a cat,,2,1,other,c,t,One?"
    path = write(tmp_path / "q.csv", HEADER, *rows)
    (prompt,) = read_dpg(path, "")
    assert prompt.text == "a cat"
    assert prompt.data["parents"] == {"1": [0], "2": [1]}
    assert json.loads(json.dumps(prompt.data)) == prompt.data
    with pytest.raises(ConfigError, match="prompts.file=.*b.csv': .*no column"):
        read_dpg(write(tmp_path / "b.csv", "item_id,text"), "")


def test_classes():
    labels = read_labels("", "")
    assert len(labels) == 1000
    assert labels[207].data == {"label": 207}


def test_instructions_of_edits_are_no_prompts(tmp_path):
    """Nor do held-out edits make a data set one with enough held-out images."""

    def curated(name, rows_of):
        for file, rows in rows_of.items():
            path = tmp_path / name / f"{file}-00000.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_curated(path, rows, 32, 32, int("+" in file))
        return artifacts.write_manifest(str(tmp_path / name), "curate", "1", CurateSettings(source="x"), {}, {})

    held = curated("a", {"train/32x32": 5, "held_out/32x32": 3, "held_out/32x32+1": 4})
    assert len(list(read_held_out(held))) == 3
    few = curated("b", {"train/32x32": 5, "train/32x32+1": 2, "held_out/32x32+1": 4})
    assert len(list(read_held_out(few))) == 5
    assert find_test_split(few, edits=True) == "held_out"
