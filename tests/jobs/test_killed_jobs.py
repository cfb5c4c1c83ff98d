"""kill -9 in the middle of each data step of the workflow; run again, it ends with the same files."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

ROOT = Path(__file__).parents[2]
KILLED = ("curate", "color_stats", "basis", "encode")


def run_until(config, condition):
    """Run the workflow's job until `condition()` and kill its process group; False where it ended before."""
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    command = [sys.executable, str(ROOT / "jobs" / "workflow.py"), str(config)]
    with open(config.with_suffix(".log"), "a") as log:
        job = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, stdout=log, stderr=log)
    deadline = time.monotonic() + 240
    while not condition():
        assert job.poll() is None, config.with_suffix(".log").read_text()[-3000:]
        assert time.monotonic() < deadline, config.with_suffix(".log").read_text()[-3000:]
        time.sleep(0.02)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()


def summaries(root, step):
    return {p: p.stat().st_mtime_ns for p in (root / step).glob("*/.done/**/*.json")}


@pytest.mark.slow
@pytest.mark.ray
def test_workflow_killed_in_every_step(tiny_workflow, tmp_path):
    settings, _, outcomes = tiny_workflow
    config = tmp_path / "config.yaml"
    root = tmp_path / "runs"
    tree = settings.model_dump(mode="json") | {"run": {"storage": str(root)}}
    config.write_text(yaml.safe_dump(tree))
    for step in KILLED:
        known = {name: summaries(root, name) for name in KILLED}
        run_until(config, lambda step=step: summaries(root, step))
        for before in known.values():  # what was finished at the kill before this one was not done again
            assert all(p.stat().st_mtime_ns == t for p, t in before.items())
    run_until(config, lambda: list(root.glob("finetune/*/.run.json")))
    for step in KILLED:
        (folder,) = (root / step).iterdir()
        whole = outcomes[step].artifact
        manifest = yaml.safe_load((folder / "manifest.json").read_text())
        assert manifest["id"] == whole.id
        assert manifest["files"] == whole.manifest["files"]
    (curated,) = (root / "curate").iterdir()
    rows = [k for split in ("train", "held_out") for f in (curated / split).iterdir() for k in keys(f)]
    assert Counter(rows) == Counter(k for f in Path(settings.curate["source"]).glob("*.parquet") for k in keys(f))


def keys(file):
    return pq.read_table(file, columns=["key"])["key"].to_pylist()
