"""Values by the types of their settings; how a whole configuration is read is in test_config.py."""

from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import BaseModel

from pipelines.core.yaml_values import ValidatedAs, annotation_at, load_yaml, parse_value


class Inner(BaseModel):
    rate: float = 0.1
    words: list[str] = []


class Outer(BaseModel):
    inner: Inner | None = None
    held: Annotated[dict[str, Any], ValidatedAs(Inner)] = {}
    held_or_none: Annotated[dict[str, Any] | None, ValidatedAs(Inner)] = None
    limits: dict[str, list[int]] = {}


@pytest.mark.parametrize(
    ("text", "annotation", "value"),
    [
        ("12:30 # no comment", str, "12:30 # no comment"),
        ("yes", str, "yes"),
        ("3", int, 3),
        ("1_000", int, 1000),
        ("010", int, "010"),
        ("0x1F", int, 31),
        ("5e-5", float, "5e-5"),
        ("5.0e-5", float, 5e-5),
        ("true", bool, True),
        ("null", int | None, None),
        ("", int, ""),
        ("3", Literal[3, "all"], 3),
        ("all", int | Literal["all"], "all"),
        ("a, b", list[str], "a, b"),
        ("[yes, 12:30]", list[str], ["yes", "12:30"]),
        ("[yes, 12:30]", list[Any], [True, "12:30"]),
        ("{a: 1}", dict[str, int], {"a": 1}),
    ],
)
def test_a_value_is_read_by_the_type_of_its_setting(text, annotation, value):
    found = parse_value(text, annotation)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("[1] # one", "'# one' follows its last bracket"), ("[1", "expected"), ("{a: 1, a: 2}", "twice")],
)
def test_brackets_that_are_not_one_yaml_value_are_refused(text, message):
    with pytest.raises(yaml.YAMLError, match=message):
        parse_value(text, list[int])


@pytest.mark.parametrize(
    ("key", "annotation"),
    [
        ("inner.rate", float),
        ("held.words", list[str]),
        ("held_or_none.rate", float),
        ("limits.any/name", list[int]),
        ("inner.absent", Any),
        ("absent", Any),
    ],
)
def test_the_type_of_a_dotted_key(key, annotation):
    assert annotation_at(Outer, key) == annotation


def test_the_schema_of_held_settings_is_their_models():
    properties = Outer.model_json_schema()["properties"]
    held, null = properties["held_or_none"]["anyOf"]
    assert properties["held"]["properties"].keys() == held["properties"].keys() == {"rate", "words"}
    assert null == {"type": "null"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("010", "010"),
        (".inf", float("inf")),
        ("no", False),
        ("~", None),
    ],
)
def test_scalars_of_a_file(text, value):
    assert load_yaml(f"a: {text}") == {"a": value}


def test_an_alias_is_not_a_duplicate_key():
    assert load_yaml("a: &x {k: 1}\nb: *x") == {"a": {"k": 1}, "b": {"k": 1}}
    with pytest.raises(yaml.YAMLError, match="the key 'k' appears twice, in lines 1 and 3; remove one"):
        load_yaml("k: 1\nj: 2\nk: 3")
