"""Jobs whose places are not there, jobs that are asked to end, and two identical jobs at once."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from mlflow.tracking import MlflowClient

from pipelines.core import preflight
from pipelines.core.config import RunSettings
from pipelines.core.tracking import open_run, tracking_uri

ROOT = Path(__file__).parents[2]


def curate_tree(tmp_path, make_shards, make_images, **run):
    return {
        "source": str(make_shards(make_images(12))), "buckets": [[32, 32]], "filters": {"min_side": 32},
        "run": {"storage": str(tmp_path / "runs"), **run},
    }  # fmt: skip


@pytest.mark.parametrize("job_name", ["curate", "workflow"])
@pytest.mark.parametrize("place", ["storage", "server", "experiment"])
def test_a_missing_path_is_a_one_line_error_before_ray(
    job, config, tmp_path, make_shards, make_images, monkeypatch, tiny_base, job_name, place
):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    tree = curate_tree(tmp_path, make_shards, make_images)
    run = tree["run"]
    if place == "storage":
        (tmp_path / "file").write_text("")
        run |= {"storage": str(tmp_path / "file/runs"), "tracking_uri": f"sqlite:///{tmp_path}/mlflow.db"}
        status, parts = 2, ["run.storage='", "Not a directory"]
    elif place == "server":
        run["tracking_uri"] = "http://127.0.0.1:1"
        status, parts = 1, ["the MLflow store at http://127.0.0.1:1 does not respond"]
    else:
        with open_run(RunSettings(**run), "curate") as tracker:
            made = tracker.client.get_run(tracker.run_id).info.experiment_id
        MlflowClient(tracking_uri(RunSettings(**run))).delete_experiment(made)
        status, parts = 2, ["run.experiment='asymflow': was deleted", f"--experiment-id {made}"]
    if job_name == "workflow":
        curate = {key: tree.pop(key) for key in ("source", "buckets", "filters")}
        tree |= {
            "base": str(tiny_base),
            "curate": curate,
            "finetune": {"loss": {"perceptual": {"net": "squeeze", "weights": "random", "weight": 0.005}}},
        }
    started = time.monotonic()
    ended, out, err = job(job_name, config(tree))
    assert (ended, out) == (status, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert all(part in err for part in parts)
    assert time.monotonic() - started < 30
    assert not list(tmp_path.rglob("*.partial"))
    assert preflight._QUICK


@pytest.mark.slow
@pytest.mark.ray
def test_of_two_identical_jobs_one_waits_for_the_other(tmp_path, make_shards, make_images):
    """The first is asked to end in the middle of its work, the second, which takes over, before Ray is up."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(curate_tree(tmp_path, make_shards, make_images)))
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}

    def start(name):
        with open(tmp_path / f"{name}.out", "w") as out, open(tmp_path / f"{name}.err", "w") as err:
            command = [sys.executable, "jobs/curate.py", str(path)]
            return subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, stdout=out, stderr=err)

    def wait(process, condition):
        deadline = time.monotonic() + 200
        while not condition():
            assert process.poll() is None, list(tmp_path.glob("*.err"))
            assert time.monotonic() < deadline, list(tmp_path.glob("*.err"))
            time.sleep(0.02)

    def holder():
        notes = [lock.read_text() for lock in (tmp_path / "runs/curate").glob("*/.lock")]
        return json.loads(notes[0])["pid"] if notes and notes[0] else 0

    def assert_ended_by_sigterm(process, name):
        process.send_signal(signal.SIGTERM)
        assert process.wait(100) == 143
        told = (tmp_path / f"{name}.err").read_text()
        (line,) = [line for line in told.splitlines() if line.startswith("error: ")]
        assert line == "error: ended by SIGTERM; run the same command again to resume"
        assert "Traceback" not in told
        assert "SIGABRT" not in told
        assert "*** SIGTERM" not in told
        assert (tmp_path / f"{name}.out").read_text() == ""

    first = start("first")
    wait(first, lambda: holder() == first.pid)
    second = start("second")
    try:
        wait(first, lambda: list((tmp_path / "runs/curate").glob("*/.run.json")))
        assert holder() == first.pid
        assert_ended_by_sigterm(first, "first")
        wait(second, lambda: holder() == second.pid)
        assert f"process {first.pid} on " in (tmp_path / "second.err").read_text()
        assert_ended_by_sigterm(second, "second")
    finally:
        for process in (first, second):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
