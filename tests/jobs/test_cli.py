"""Bad settings: exit status 2 and one readable line, before Ray starts. Most run in this process, for speed."""

import json
import os
import runpy
import subprocess
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
    assert status == 0 and "usage: " in out and err == ""


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
    assert status == 2 and "artifact" not in out
    assert err == f"error: config file '{tmp_path}/absent.yaml' does not exist\n"


@pytest.mark.parametrize(
    ("tree", "overrides", "parts"),
    [
        ({"sorce": "x"}, [], ["sorce='x'", "unknown key", "allowed here: ", "source"]),
        ({}, ["filters.min_side=tall"], ["filters.min_side='tall'", "valid integer"]),
        ({}, ["filters.min_sides=3"], ["filters.min_sides=3", "unknown key", "min_side"]),
        ({}, ["resources.workers=0"], ["resources.workers=0", "greater than or equal to 1"]),
        ({}, ["buckets=[[64, 60]]"], ["buckets: 64x60", "multiples of 16"]),
        ({}, ["source=absent"], ["source='absent'", "no images there"]),
        ({}, ["run.storage=ftp://host/x"], ["run.storage='ftp://host/x'", "local path or s3://bucket/prefix"]),
        ({}, ["run.tracking_uri=mlruns"], ["run.tracking_uri='mlruns'", "sqlite:///PATH"]),
        ({}, ["source"], ["override 'source'", "dotted.key=value"]),
    ],
)
def test_bad_settings(job, config, tmp_path, make_shards, make_images, tree, overrides, parts):
    base = {"source": str(make_shards(make_images(3))), "run": {"storage": str(tmp_path / "runs")}}
    status, out, err = job("curate", config({**base, **tree}), *overrides)
    assert status == 2 and out == ""
    assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n")
    for part in parts:
        assert part in err


@pytest.mark.parametrize("name", ["color_stats", "basis", "encode", "finetune"])
def test_missing_inputs_are_refused(job, config, tmp_path, name):
    tree = {"curated": str(tmp_path / "absent"), "run": {"storage": str(tmp_path / "runs")}}
    if name != "color_stats":
        tree |= {"color_stats": str(tmp_path / "absent"), "base": str(tmp_path)}
    status, _, err = job(name, config(tree))
    assert status == 2 and err.startswith("error: ") and err.count("\n") == 1


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
    assert made["artifact"] is None and made["mlflow_run"] is None
    if name in ("finetune", "pretrain"):
        assert made["metrics"]["memory_gib"] > 0
    else:
        settings = yaml.safe_load("\n".join(shown))
        assert settings["run"]["storage"] and made["metrics"] == {}
        assert name != "curate" or settings["rows_per_file"] == 7


@pytest.mark.parametrize("name", ["curate", "workflow", "sweep"])
def test_a_dry_run_refuses_bad_settings(job, config, name):
    status, out, err = job(name, config({"nonsense": 1}), "--dry-run")
    assert status == 2 and out == "" and err.startswith("error: ") and "nonsense=1: unknown key" in err
    section = {"curate": {"source": "x", "buckets": "wide"}, "base": "x"}
    if name == "workflow":
        assert job(name, config(section), "--dry-run")[2].startswith("error: curate.buckets")


def test_whole_process_at_the_command_line(tmp_path):
    """Whole process: status, the one line, and no trace of Ray in its folder."""
    path = tmp_path / "config.yaml"
    path.write_text("source: data\nfilter: {}\n")
    command = [sys.executable, "jobs/curate.py", str(path), f"run.storage={tmp_path / 'runs'}"]
    environment = {**os.environ, "RAY_TMPDIR": str(tmp_path / "ray")}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == (
        "error: filter={}: unknown key; allowed here: buckets, captions, columns, crop, encoding, filters, "
        "held_out_every, horizontal_flips, labels, linear_light, near_duplicate_bits, resources, rows_per_file, run, "
        "source\n"
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.yaml"]


@pytest.mark.ray
def test_last_line_is_the_artifact(local_ray, monkeypatch, capsys, config, tmp_path, make_shards, make_images):
    tree = {"source": str(make_shards(make_images(40))), "run": {"storage": str(tmp_path / "runs")}}
    monkeypatch.setattr(sys, "argv", ["jobs/curate.py", str(config(tree)), "held_out_every=4"])
    lines = []
    for _ in range(2):  # made, then found
        runpy.run_path(str(ROOT / "jobs/curate.py"), run_name="__main__")
        lines.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    assert lines[0] == lines[1] and set(lines[0]) == {"artifact", "mlflow_run", "metrics"}
    assert (Path(lines[0]["artifact"]) / "manifest.json").exists() and len(lines[0]["mlflow_run"]) == 32
    assert lines[0]["metrics"]["kept_train"] + lines[0]["metrics"]["kept_held_out"] == 40


@pytest.mark.parametrize("name", JOBS)
def test_jobs_are_thin(name):
    assert len((ROOT / "jobs" / f"{name}.py").read_text().splitlines()) <= 40


def test_a_suite_may_precede_the_configuration(job, config, tmp_path):
    settings = config({"run": {"storage": str(tmp_path / "runs")}, "base": str(ROOT / "models/toy_klein")})
    status, out, err = job("evaluate", "imagenet50k", settings)
    assert status == 2 and out == "" and err.startswith("error: pretrained: missing; imagenet50k is for class")
    status, out, err = job("evaluate", settings, "suite=nonsense")
    assert status == 2 and err.startswith("error: suite='nonsense': input should be 'demo', 'classes', 'coco10k', ")
    assert job("evaluate", "coco10k")[0] == 2


def test_self_tests_need_no_configuration(job):
    status, out, err = job("evaluate", "dpg", "--self-test")
    assert status == 0 and err == "" and out.endswith("all passed\n")
    assert all(line.startswith("ok    dpg  ") for line in out.splitlines()[:-1])
    status, out, _ = job("evaluate", "--self-test")
    assert status == 0 and {line.split()[1] for line in out.splitlines()[:-1]} > {"demo", "geneval", "imagenet50k"}


def test_a_bad_sweep_is_one_line(job, config, tmp_path):
    tree = {"run": {"storage": str(tmp_path / "runs")}, "metric": "trained/fid", "evaluate": {"suite": "demo"}}
    status, out, err = job("sweep", config({**tree, "grid": {"sampling.steps": [4]}}))
    assert status == 2 and out == "" and err.count("\n") == 1
    assert err.startswith("error: evaluate.metric='trained/fid': must be one of latent/sliced_wasserstein")
