import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


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
    assert status == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    for part in parts:
        assert part in err


def test_whole_process_at_the_command_line(tmp_path):
    """Whole process: status, the one line, and no trace of Ray in its folder."""
    path = tmp_path / "config.yaml"
    path.write_text("source: data\nfilter: {}\n")
    command = [sys.executable, "jobs/curate.py", str(path), f"run.storage={tmp_path / 'runs'}"]
    environment = {**os.environ, "RAY_TMPDIR": str(tmp_path / "ray")}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)
    assert done.returncode == 2
    assert done.stdout == ""
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
    assert lines[0] == lines[1]
    assert set(lines[0]) == {"artifact", "mlflow_run", "metrics"}
    assert (Path(lines[0]["artifact"]) / "manifest.json").exists()
    assert len(lines[0]["mlflow_run"]) == 32
    assert lines[0]["metrics"]["kept_train"] + lines[0]["metrics"]["kept_held_out"] == 40
