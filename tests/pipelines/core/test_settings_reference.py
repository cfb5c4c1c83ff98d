"""Settings listed for people and for editors."""

import re
from typing import Annotated, Any, Literal

import jsonschema
import pytest
from pydantic import Field

from pipelines.core.config import RunSettings, Settings, Uri
from pipelines.core.settings_reference import allowed_words, describe, json_schema, list_settings, section_models
from pipelines.core.yaml_values import ValidatedAs


class Inner(Settings):
    lr: float = Field(1e-3, gt=0)
    """Learning rate"""
    kind: Literal["adam", "sgd"] = "adam"


class Outer(Settings):
    source: Uri
    steps: int = Field(10, ge=1, le=99)
    optim: Inner = Inner()
    extra: Inner | None = None
    sizes: list[tuple[int, int]] = []
    limits: dict[str, float] = {}
    later: Annotated[dict[str, Any] | None, ValidatedAs(Inner)] = None
    most: int | Literal["all"] = "all"
    flag: bool = True
    run: RunSettings = RunSettings()


FOUND = {setting.key: setting for setting in list_settings(Outer)}


def test_describe_gives_defaults_and_explanations():
    lines = describe(Outer)
    assert "  source = (required)" in lines
    assert "  optim.lr = 0.001  # Learning rate" in lines
    assert any(line.startswith("  run.storage = 'runs/default'  # ") for line in lines)


@pytest.mark.parametrize(
    ("key", "allowed", "default"),
    [
        ("source", "text", "(required)"),
        ("steps", "integer, ≥ 1, ≤ 99", "10"),
        ("optim.lr", "number, > 0", "0.001"),
        ("optim.kind", "adam, sgd", "'adam'"),
        ("extra", "section or null", "null"),
        ("sizes", "list of [integer, integer]", "[]"),
        ("limits", "{text: number}", "{}"),
        ("most", "integer or all", "'all'"),
        ("flag", "true or false", "true"),
    ],
)
def test_types_bounds_and_defaults_are_in_words(key, allowed, default):
    assert (FOUND[key].allowed, FOUND[key].default) == (allowed, default)


def test_a_section_that_is_null_is_listed_with_its_settings():
    assert {"extra", "extra.lr", "optim.lr"} <= FOUND.keys()
    assert "optim" not in FOUND


def test_words_and_sections_of_an_annotation():
    assert allowed_words(int | Literal["all"] | None) == ["all"]
    assert allowed_words(str) == []
    assert section_models(list[Inner] | None) == [Inner]
    assert section_models(dict[str, float]) == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"step": "outer", "steps": 3, "extends": "other.yaml", "later": {"kind": "sgd"}}, None),
        ({"step": "inner"}, "'outer' was expected"),
        ({"steps": 0}, "less than the minimum of 1"),
        ({"optim": {"kind": "lion"}}, "is not one of"),
        ({"stepz": 3}, "Additional properties are not allowed"),
        ({"later": {"rate": 3}}, "not valid under any of the given schemas"),
    ],
)
def test_editors_check_by_the_schema_and_miss_no_key(config, message):
    errors = [
        error.message for error in jsonschema.Draft202012Validator(json_schema(Outer, "outer")).iter_errors(config)
    ]
    assert not errors if message is None else re.search(message, " ".join(errors))
