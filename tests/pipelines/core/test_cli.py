"""The command line in this process, with a step that needs no Ray; that of every job is in tests/jobs."""

import json
import sys

import pytest
import yaml

from pipelines.core.cli import Job, main, print_plan, read_settings
from pipelines.core.config import ConfigError, StepSettings
from pipelines.core.step import Step


class CountSettings(StepSettings):
    to: int = 3
    """Last number"""


STEP = Step("count", CountSettings, lambda settings, context: {"count": settings.to})


@pytest.fixture
def config(tmp_path, monkeypatch, mlflow_store):
    monkeypatch.setattr(sys, "argv", ["jobs/count.py"])
    monkeypatch.setattr("pipelines.core.step.start_ray", lambda run: None)
    path = tmp_path / "config.yaml"
    run = {"storage": str(tmp_path / "runs"), "tracking_uri": mlflow_store}
    path.write_text(yaml.safe_dump({"run": run}))
    return str(path)


def test_the_last_line_is_the_artifact_and_a_summary_stands_above(config, capsys):
    concluded = []
    job = Job(
        STEP,
        prepare=lambda settings: settings.model_copy(update={"to": settings.to + 1}),
        summarize=lambda outcome: f"reused: {outcome.reused}",
        conclude=lambda settings, outcome: concluded.append(settings.to),
    )
    for reused in (False, True):
        main(CountSettings, lambda: job, "Count.", arguments=[config, "to=4"])
        out, err = capsys.readouterr()
        *_, summary, empty, last = out.splitlines()
        assert (summary, empty) == (f"reused: {reused}", "")
        assert json.loads(last)["metrics"] == {"count": 5}
        assert ("count: up to date, nothing to do: " in err) == reused
    assert concluded == [5, 5]


def test_a_dry_run_prints_the_settings_and_loads_no_step(config, capsys):
    main(CountSettings, lambda: pytest.fail("the step was loaded"), "Count.", arguments=[config, "to=7", "--dry-run"])
    *settings, last = capsys.readouterr().out.splitlines()
    assert yaml.safe_load("\n".join(settings))["to"] == 7
    assert json.loads(last) == {"artifact": None, "mlflow_run": None, "metrics": {}}


def test_a_plan_of_its_own_replaces_the_settings(capsys):
    print_plan(CountSettings(), lambda settings: {"numbers": settings.to})
    assert json.loads(capsys.readouterr().out)["metrics"] == {"numbers": 3}


@pytest.mark.parametrize(("arguments", "status"), [(["--help"], 0), (["-h"], 0), ([], 2)])
def test_help_shows_usage_settings_and_note(config, capsys, arguments, status):
    with pytest.raises(SystemExit) as ended:
        read_settings(CountSettings, "  Count.\n", arguments, usage="A CONFIG.yaml", note="Counted from 0.")
    out = capsys.readouterr().out
    assert ended.value.code == status
    assert out.startswith("usage: python jobs/count.py A CONFIG.yaml [--dry-run] [dotted.key=value ...]\n\nCount.\n")
    assert "  to = 3  # Last number\n" in out
    assert out.endswith("\nCounted from 0.\n")


def test_without_a_file_all_settings_default(config):
    assert read_settings(CountSettings, "", [], needs_config=False)[0].to == 3
    assert read_settings(CountSettings, "", ["to=5", "--dry-run"], needs_config=False)[0].to == 5
    settings, dry = read_settings(CountSettings, "", [config, "to=6"], needs_config=False)
    assert (settings.to, dry, settings.run.storage.endswith("/runs")) == (6, False, True)


@pytest.mark.parametrize(("option", "setting"), [("--to=4", "to=4"), ("--to", "to=VALUE"), ("-t", "t=VALUE")])
def test_an_option_says_how_settings_are_written(config, option, setting):
    with pytest.raises(ConfigError, match=f"^{option}: settings are written key=value, like {setting}; --help lists"):
        read_settings(CountSettings, "", [config, option])
