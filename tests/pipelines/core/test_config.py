from typing import Literal

import pytest
from pydantic import Field

from pipelines.core.config import ConfigError, RunSettings, Settings, Uri, describe, load_config


class Inner(Settings):
    lr: float = Field(1e-3, gt=0)
    """Learning rate"""
    kind: Literal["adam", "sgd"] = "adam"


class Outer(Settings):
    source: Uri
    steps: int = 10
    optim: Inner = Inner()
    run: RunSettings = RunSettings()


@pytest.fixture
def load(tmp_path):
    def load(text, *overrides):
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return load_config(Outer, str(path), list(overrides))

    return load


@pytest.fixture
def refuse(load):
    def refuse(text, *overrides):
        with pytest.raises(ConfigError) as caught:
            load(text, *overrides)
        message = str(caught.value)
        assert "\n" not in message
        return message

    return refuse


def test_file_then_overrides(load):
    settings = load("source: data\nsteps: 3\noptim: {lr: 0.1}", "optim.lr=5e-5", "run.experiment=mine")
    assert (settings.source, settings.steps, settings.optim.lr) == ("data", 3, 5e-5)
    assert settings.optim.kind == "adam" and settings.run.experiment == "mine"


def test_override_makes_missing_and_empty_sections(load):
    assert load("source: data\noptim:\n", "optim.lr=2").optim.lr == 2
    assert load("source: data", "optim.kind=sgd").optim.kind == "sgd"


def test_empty_override_is_an_empty_text(load):
    assert load("source: data\nrun: {ray_address: auto}", "run.ray_address=").run.ray_address == ""


@pytest.mark.parametrize(
    ("text", "overrides", "parts"),
    [
        ("source: data\nstep: 3", [], ["step=3", "unknown key", "optim, run, source, steps"]),
        ("source: data\noptim: {rate: 3}", [], ["optim.rate=3", "unknown key", "kind, lr"]),
        ("source: data", ["optim.rate=3"], ["optim.rate=3", "unknown key", "kind, lr"]),
        ("source: data\nsteps: many", [], ["steps='many'", "valid integer"]),
        ("source: data", ["optim.lr=-1"], ["optim.lr=-1", "greater than 0"]),
        ("source: data", ["optim.kind=lion"], ["optim.kind='lion'", "'adam' or 'sgd'"]),
        ("source: data\noptim: 3", [], ["optim=3", "Inner"]),
        ("steps: 3", [], ["source: missing"]),
        ("", [], ["source: missing"]),
        ("source: ''", [], ["source=''", "not be empty"]),
        ("source: ftp://host/data", [], ["source='ftp://host/data'", "local path or s3://bucket"]),
        ("source: s3://", [], ["source='s3://'", "local path or s3://bucket"]),
        ("source: data", ["steps"], ["'steps'", "dotted.key=value"]),
        ("source: data", ["=3"], ["'=3'", "dotted.key=value"]),
        ("source: data\nsteps: 3", ["steps.more=3"], ["steps.more", "steps is a value, not a section"]),
        ("source: data", ["steps=[1"], ["steps='[1'", "not a YAML value"]),
        ("source: [data", [], ["config.yaml is not YAML"]),
        ("- source", [], ["config.yaml must hold settings", "list"]),
        ("false", [], ["config.yaml must hold settings", "bool"]),
    ],
)
def test_bad_settings_are_named(refuse, text, overrides, parts):
    message = refuse(text, *overrides)
    for part in parts:
        assert part in message


def test_every_mistake_is_named_at_once(refuse):
    message = refuse("source: data\nsteps: many\noptim: {rate: 1}")
    assert "steps='many'" in message and "optim.rate=1" in message


def test_file_that_is_missing_or_no_text(tmp_path):
    with pytest.raises(ConfigError, match="config file .*absent.yaml' does not exist"):
        load_config(Outer, str(tmp_path / "absent.yaml"), [])
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(Outer, str(tmp_path), [])
    picture = tmp_path / "picture.yaml"
    picture.write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(ConfigError, match="is not YAML"):
        load_config(Outer, str(picture), [])


def test_settings_do_not_run_code(refuse):
    assert "is not YAML" in refuse("source: !!python/object/apply:os.getcwd []")


def test_settings_do_not_change(load):
    with pytest.raises(ValueError, match="frozen"):
        load("source: data").steps = 4


def test_describe_gives_defaults_and_explanations():
    lines = describe(Outer)
    assert "  source = (required)" in lines
    assert "  optim.lr = 0.001  # Learning rate" in lines
    assert any(line.startswith("  run.storage = 'runs/default'  # ") for line in lines)
