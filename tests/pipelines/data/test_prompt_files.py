import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.core import storage
from pipelines.data.prompt_files import read_prompt_file

TEXTS = ["a fox # red", "line\u2028separator \x85 and \x0c form feed", "zwei Füchse, im Schnee", "12:30"]


def content(kind):
    rows = [{"prompt": text, "id": i} for i, text in enumerate(TEXTS)]
    dump = {"ensure_ascii": False}
    return {
        "txt": "\n".join(TEXTS) + "\n",
        "jsonl": "\n".join(json.dumps(row, **dump) for row in rows),
        "ndjson": "\r\n".join(json.dumps(row, **dump) for row in rows) + "\r\n\r\n",
        "json": json.dumps(rows, indent=1, **dump),
        "csv": "id,prompt\r\n" + "".join(f'{row["id"]},"{row["prompt"]}"\r\n' for row in rows),
        "tsv": "id\tprompt\n" + "".join(f"{row['id']}\t{row['prompt']}\n" for row in rows),
    }[kind]


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("kind", ["txt", "jsonl", "ndjson", "json", "csv", "tsv"])
def test_every_format_gives_every_prompt_whole(tmp_path, kind, mark):
    file = tmp_path / f"prompts.{kind}"
    file.write_bytes((mark + content(kind)).encode())
    assert read_prompt_file(str(file), "prompt") == TEXTS


def test_lists_of_strings_lines_named_json_and_parquet(tmp_path):
    file = tmp_path / "prompts.json"
    file.write_text(json.dumps(TEXTS))
    assert read_prompt_file(str(file), "prompt") == TEXTS
    file.write_text(content("jsonl"))
    assert read_prompt_file(str(file), "prompt") == TEXTS
    pq.write_table(pa.table({"caption": TEXTS, "image": [b"x"] * len(TEXTS)}), tmp_path / "prompts.parquet")
    assert read_prompt_file(str(tmp_path / "prompts.parquet"), "caption") == TEXTS


def test_the_parquet_files_of_a_folder_are_read_in_order(tmp_path):
    for i in (1, 0):
        pq.write_table(pa.table({"caption": TEXTS[2 * i : 2 * i + 2]}), tmp_path / f"64x64-0000{i}.parquet")
    assert read_prompt_file(str(tmp_path), "caption") == TEXTS


def test_from_a_bucket(s3):
    storage.write_bytes(f"{s3}/prompts.csv", content("csv").encode())
    assert read_prompt_file(f"{s3}/prompts.csv", "prompt") == TEXTS


@pytest.mark.parametrize(
    ("name", "data", "named"),
    [
        ("a.txt", content("jsonl"), "holds JSON, not one prompt per line; name it .json or .jsonl"),
        ("a.txt", content("json"), "holds JSON, not one prompt per line"),
        ("a.txt", "one\rtwo\r", "line 1 contains a carriage return"),
        ("a.xlsx", "PK", "ends with '.xlsx'; allowed: .txt, .jsonl, .ndjson, .json, .csv, .tsv, .parquet"),
        ("a.yaml", "- a fox", "ends with '.yaml'; allowed"),
        ("a.json", '{"prompts": [\n"a"]}', "holds a dict; expected a list of strings or of objects"),
        ("a.json", '["a", 3]', "row 2 has no 'prompt'; it has int"),
        ("a.json", "[" * 100_000, "is nested too deep"),
        ("a.csv", "a fox\nb\n", "no column prompt; its first line has a fox"),
        ("a.parquet", "PAR1", "is not a parquet file"),
    ],
)
def test_what_is_ambiguous_or_broken_is_refused(tmp_path, name, data, named):
    (tmp_path / name).write_text(data)
    with pytest.raises(ValueError, match=named):
        read_prompt_file(str(tmp_path / name), "prompt")
