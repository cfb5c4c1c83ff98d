import re
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from pipelines.core.config import ConfigError, RunSettings, Settings, Uri, load_config
from pipelines.core.yaml_values import ValidatedAs


class Inner(Settings):
    lr: float = Field(1e-3, gt=0)
    """Learning rate"""
    kind: Literal["adam", "sgd"] = "adam"
    betas: tuple[float, float] = (0.9, 0.95)


class Outer(Settings):
    source: Uri
    steps: int = 10
    optim: Inner = Inner()
    prompts: list[str] = []
    limits: dict[str, float] = {}
    free: dict[str, Any] = {}
    later: Annotated[dict[str, Any] | None, ValidatedAs(Inner)] = None
    most: int | Literal["all"] = "all"
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
    assert settings.optim.kind == "adam"
    assert settings.run.experiment == "mine"


def test_override_creates_missing_sections(load):
    assert load("source: data\noptim:\n", "optim.lr=2").optim.lr == 2
    assert load("source: data", "optim.kind=sgd").optim.kind == "sgd"


def test_empty_override_is_an_empty_text(load):
    assert load("source: data\nrun: {ray_address: auto}", "run.ray_address=").run.ray_address == ""


@pytest.mark.parametrize(
    ("text", "overrides", "parts"),
    [
        ("source: data\nstep: 3", [], ["step=3", "unknown key", "optim, prompts, run, source, steps"]),
        ("source: data\noptim: {rate: 3}", [], ["optim.rate=3", "unknown key", "betas, kind, lr"]),
        ("source: data", ["optim.rate=3"], ["optim.rate=3", "unknown key", "betas, kind, lr"]),
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
        ("source: data", ["steps=[1"], ["steps='[1'", "is not a YAML value"]),
        ("source: [data", [], ["config.yaml is not YAML"]),
        ("- source", [], ["config.yaml must hold settings", "list"]),
        ("false", [], ["config.yaml must hold settings", "bool"]),
    ],
)
def test_bad_settings_are_named(refuse, text, overrides, parts):
    message = refuse(text, *overrides)
    for part in parts:
        assert part in message


TEXTS = [
    "a fox # red", "/x 100% #1", "12:30", "yes", "#1 dad mug", "null", "~", "010", "1e5", "2024-01-01", "'quoted'",
    "a: b", "[draft] of {name}", "- a", "&x", "*x", "!tag", "a\u2028b", " spaces ", "50%", "{",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_a_setting_of_text_takes_a_command_line_value_whole(load, text):
    settings = load("source: data", f"source={text}", f"run.experiment={text}", f"run.storage={text}")
    assert (settings.source, settings.run.experiment, settings.run.storage) == (text,) * 3


def test_lists_and_mappings_on_the_command_line_are_yaml(load):
    assert load("source: data", 'prompts=[yes, 12:30, "a, b", 010]').prompts == ["yes", "12:30", "a, b", "010"]
    settings = load("source: data", "optim={lr: 0.5, betas: [0, 1]}", "limits={trained/fid: 3}")
    assert (settings.optim.lr, settings.optim.betas, settings.limits) == (0.5, (0, 1), {"trained/fid": 3})
    assert load("source: data", "limits.trained/fid=3").limits == {"trained/fid": 3}


def test_other_settings_are_one_value_without_comments(load, refuse):
    assert load("source: data", "steps=1_000", "most=7").most == 7
    assert load("source: data", "most=all").most == "all"
    for text in ("3 # three", "1:30", "[3]", "3, 4"):
        assert "steps=" in refuse("source: data", f"steps={text}")
    free = load("source: data", "free.a=#1", "free.b=a # b", "free.c=3", "free.d=null", "free.e=12:30").free
    assert free == {"a": "#1", "b": "a # b", "c": 3, "d": None, "e": "12:30"}


def test_settings_that_are_validated_later_have_their_types_already(load):
    assert load("source: data", "later.kind=no", "later.lr=1e-3").later == {"kind": "no", "lr": "1e-3"}
    assert load("source: data", "later=null").later is None


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["prompts=[a] # red"], "prompts='.a. # red' is not a YAML value: '# red' follows its last bracket"),
        (["prompts=[a # red]"], "prompts=.*is not a YAML value"),
        (["optim={lr: 1, lr: 2}"], "the key 'lr' appears twice, in lines 1 and 1"),
        (["steps=3", "steps=4"], "'steps=3' would be lost, because 'steps=4' replaces it"),
        (["optim.lr=3", "optim={kind: sgd}"], "'optim.lr=3' would be lost"),
        (["prompts=" + "[" * 3000], "prompts=.*is not a YAML value: it is nested deeper than 50 levels"),
        (["optim.lr=.inf"], "optim.lr=inf: input should be a finite number"),
        (["optim.lr=inf"], "optim.lr='inf': input should be a finite number"),
        (["optim.betas=[0.9, .nan]"], "optim.betas.1=nan: input should be a finite number"),
        (["limits.a=.inf"], "limits.a=inf: input should be a finite number"),
    ],
)
def test_overrides_that_would_lose_something_are_refused(refuse, overrides, named):
    message = refuse("source: data", *overrides)
    assert re.search(named, message)
    assert len(message) < 300


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("source: data\noptim: {lr: 1}\nsteps: 3\noptim:\n", "the key 'optim' appears twice, in lines 2 and 4"),
        ("source: data\noptim:\n  lr: 1\n  kind: sgd\n  lr: 2", "the key 'lr' appears twice, in lines 3 and 5"),
        ("source: data\noptim: {lr: .inf}", "optim.lr=inf: input should be a finite number"),
        ("source: " + "[" * 3000, "is not YAML: it is nested deeper than 50 levels"),
        ("source: data\nsteps: 1:30", "steps='1:30': input should be a valid integer"),
    ],
)
def test_files_that_would_lose_something_are_refused(refuse, text, named):
    message = refuse(text)
    assert re.search(named, message)
    assert len(message) < 300


def test_numbers_and_dates_in_a_file_keep_their_types(load):
    settings = load("\ufeffsource: 2024-01-01\nsteps: 010\nrun: {experiment: 12:30}")
    assert (settings.source, settings.steps, settings.run.experiment) == ("2024-01-01", 10, "12:30")


def test_every_mistake_is_named_at_once(refuse):
    message = refuse("source: data\nsteps: many\noptim: {rate: 1}")
    assert "steps='many'" in message
    assert "optim.rate=1" in message


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
