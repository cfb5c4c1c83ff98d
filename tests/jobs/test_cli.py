"""Bad settings: exit status 2 and one readable line, before Ray starts. Most run in this process, for speed."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
JOBS = sorted(path.stem for path in (ROOT / "jobs").glob("*.py"))
STEPS = ("curate", "caption", "color_stats", "basis", "encode", "finetune", "pretrain", "sample", "evaluate")


@pytest.mark.parametrize("name", JOBS)
def test_help(job, name):
    status, out, err = job(name, "--help")
    assert status == 0
    assert "usage: " in out
    assert err == ""


@pytest.mark.parametrize("name", STEPS)
def test_help_shows_settings_with_defaults(job, name, config):
    status, out, _ = job(name, config({}), "--help")
    assert status == 0
    assert "  run.storage = 'runs/default'  # Root of all artifacts" in out
    assert "(required)" in out or name == "evaluate"  # what that needs depends on its suite


@pytest.mark.parametrize("name", STEPS)
def test_no_arguments(job, name):
    assert job(name)[0] == 2


@pytest.mark.parametrize("name", [*STEPS, "workflow", "rank_sweep"])
def test_missing_file(job, name, tmp_path):
    status, out, err = job(name, tmp_path / "absent.yaml")
    assert status == 2
    assert "artifact" not in out
    assert err == f"error: config file '{tmp_path}/absent.yaml' does not exist\n"


@pytest.mark.parametrize("name", ["color_stats", "basis", "encode", "finetune"])
def test_missing_inputs_are_refused(job, config, tmp_path, name):
    tree = {"curated": str(tmp_path / "absent"), "run": {"storage": str(tmp_path / "runs")}}
    if name != "color_stats":
        tree |= {"color_stats": str(tmp_path / "absent"), "base": str(tmp_path)}
    status, _, err = job(name, config(tree))
    assert status == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("curate", ["jobs/configs/curate/laion.yaml", "rows_per_file=7"]),
        ("sample", ["jobs/configs/sample/klein_9b.yaml"]),
        ("evaluate", ["geneval", "jobs/configs/evaluate/klein_9b.yaml", "--latest-registered"]),
        ("finetune", ["jobs/configs/finetune/klein_9b.yaml"]),
        ("pretrain", ["jobs/configs/pretrain/imagenet_h16_r8.yaml"]),
        ("rank_sweep", ["jobs/configs/rank_sweep/imagenet.yaml"]),
        ("sweep", ["jobs/configs/sweep/guidance.yaml"]),
        ("workflow", ["jobs/configs/workflow/klein_9b.yaml"]),
    ],
)
def test_a_dry_run_prints_settings_and_starts_nothing(job, monkeypatch, capsys, name, arguments):
    """None of the buckets, weights and servers that these name is there."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [f"jobs/{name}.py", *arguments, "--dry-run"])
    runpy.run_path(str(ROOT / f"jobs/{name}.py"), run_name="__main__")
    *shown, last = capsys.readouterr().out.splitlines()
    made = json.loads(last)
    assert made["artifact"] is None
    assert made["mlflow_run"] is None
    if name in ("finetune", "pretrain"):
        assert made["metrics"]["memory_gib"] > 0
    else:
        settings = yaml.safe_load("\n".join(shown))
        assert settings["run"]["storage"]
        assert made["metrics"] == {}
        assert name != "curate" or settings["rows_per_file"] == 7


@pytest.mark.parametrize("name", ["curate", "workflow", "sweep"])
def test_a_dry_run_refuses_bad_settings(job, config, name):
    status, out, err = job(name, config({"nonsense": 1}), "--dry-run")
    assert status == 2
    assert out == ""
    assert err.startswith("error: ")
    assert "nonsense=1: unknown key" in err
    section = {"curate": {"source": "x", "buckets": "wide"}, "base": "x"}
    if name == "workflow":
        assert job(name, config(section), "--dry-run")[2].startswith("error: curate.buckets")


@pytest.mark.parametrize("name", JOBS)
def test_jobs_are_thin(name):
    assert len((ROOT / "jobs" / f"{name}.py").read_text().splitlines()) <= 40
