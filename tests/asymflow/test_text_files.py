import json

import pytest

from asymflow.text_files import decode_text, parse_json, parse_json_lines, parse_table, read_json_object, split_lines


def test_only_line_feeds_end_a_line():
    separators = "a\x0cb", "a\x0bb", "a\x1cb", "a\x85b", "a\u2028b", "a\u2029b"
    assert split_lines("\n".join(separators) + "\n", "file") == list(separators)
    assert split_lines("one\r\ntwo\r\n", "file") == ["one", "two"]
    assert split_lines("", "file") == []
    with pytest.raises(ValueError, match="file: line 1 contains a carriage return"):
        split_lines("one\rtwo\r", "file")


def test_a_byte_order_mark_is_not_text_and_other_encodings_are_refused():
    assert decode_text("\ufeffein Fuchs".encode(), "file") == "ein Fuchs"
    for data in ("fox".encode("utf-16"), "fox".encode("utf-16-le"), b"caf\xe9", b"PAR1\x00"):
        with pytest.raises(ValueError, match="file is not UTF-8 text.*save it as UTF-8"):
            decode_text(data, "file")


def test_lines_of_json_keep_separators_inside_strings():
    rows = [{"prompt": "a\u2028b\x85c"}, {"prompt": "d"}]
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n"
    assert list(parse_json_lines(text, "file")) == [(1, rows[0]), (2, rows[1])]
    with pytest.raises(ValueError, match="file: line 2 is not JSON"):
        list(parse_json_lines("{}\n{oops\n", "file"))


def test_deep_nesting_is_one_line():
    with pytest.raises(ValueError, match="^file is nested too deep$"):
        parse_json("[" * 100_000, "file")


def test_tables_are_whole_or_refused():
    text = 'prompt,id\n"a fox, red\n at night",1\nb\u2028c,2\n'
    assert list(parse_table(text, "file", ["prompt"])) == [
        (3, {"prompt": "a fox, red\n at night", "id": "1"}),
        (4, {"prompt": "b\u2028c", "id": "2"}),
    ]
    for bad, named in [
        ("caption\na fox\n", "no column prompt; its first line has caption"),
        ("", "no column prompt; it is empty"),
        ("prompt\na fox, red\n", "line 2: the row has 2 columns, not 1"),
        ('prompt\n"a fox\nb\n', "line 3: this is not CSV"),
        ("prompt,prompt\na,b\n", "column prompt twice"),
    ]:
        with pytest.raises(ValueError, match=named):
            list(parse_table(bad, "file", ["prompt"]))


def test_files_of_models_are_read_the_same_way(tmp_path):
    (tmp_path / "config.json").write_bytes('\ufeff{"model_type": "x"}'.encode())
    assert read_json_object(tmp_path / "config.json") == {"model_type": "x"}
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match="config.json is a list; expected a JSON object"):
        read_json_object(tmp_path / "config.json")
