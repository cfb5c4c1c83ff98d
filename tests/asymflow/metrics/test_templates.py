import pytest

from asymflow.metrics.templates import check_template, read_template
from asymflow.metrics.weights import MissingWeights


def test_a_template_is_read_without_its_byte_order_mark(tmp_path):
    (tmp_path / "template.txt").write_bytes("\ufeffQ: {question}\r\n".encode())
    assert read_template(tmp_path / "template.txt", ["{question}"], "here") == "Q: {question}\r\n"


def test_other_encodings_are_refused(tmp_path):
    (tmp_path / "template.txt").write_bytes("{question} é".encode("latin-1"))
    with pytest.raises(MissingWeights, match="template.txt is not UTF-8 text"):
        read_template(tmp_path / "template.txt", ["{question}"], "here")


@pytest.mark.parametrize("path", ["", "absent.txt"])
def test_a_missing_file_is_refused_with_what_is_needed(path):
    with pytest.raises(MissingWeights, match=f"there is no template '{path}'; .* {{question}} once each: the paper"):
        read_template(path, ["{question}"], "the paper")


@pytest.mark.parametrize("text", ["Q:", "{a} {a} {b}"])
def test_each_field_occurs_once(text):
    with pytest.raises(MissingWeights, match="the template does not contain {a}.* exactly once; take it from X"):
        check_template(text, ["{a}", "{b}"], "take it from X")
