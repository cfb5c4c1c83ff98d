import subprocess
import sys

import pytest

from pipelines.core import leave_cluster
from pipelines.core.leave_cluster import busy_workers, leave

WORKER = "ray::RayTrainWorker.execute()"


@pytest.fixture
def ray(tmp_path, monkeypatch):
    """A `ray` that writes down what it is asked, and refuses where it is told to."""
    program = tmp_path / "ray"
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n[ ! -e {tmp_path}/refuse ]\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    monkeypatch.setattr(leave_cluster, "POLL_SECONDS", 0.05)
    return tmp_path


@pytest.fixture
def worker():
    """A process that calls itself what Ray calls a training's worker."""
    with subprocess.Popen([WORKER, "-c", "import time; time.sleep(60)"], executable=sys.executable) as process:
        yield process
        process.kill()


def test_ray_gets_the_drain_deadline(ray):
    assert leave(120)
    assert (ray / "asked").read_text() == (
        "drain-node --address head:6379 --reason DRAIN_NODE_REASON_PREEMPTION "
        "--reason-message the node is about to be taken away --deadline-remaining-seconds 120\n"
    )


def test_it_waits_for_workers_to_go(ray, worker):
    assert any(title.startswith(WORKER) for title in busy_workers())
    subprocess.Popen(["sh", "-c", f"sleep 0.5; kill {worker.pid}"])
    assert leave(60)
    assert worker.wait(10) != 0


def test_waiting_ends_at_the_deadline(ray, worker, capsys):
    assert not leave(1)
    assert f"still training: {WORKER}" in capsys.readouterr().err
    assert worker.poll() is None


def test_a_head_that_hangs_is_an_error_in_time(ray, tmp_path):
    (tmp_path / "ray").write_text("#!/bin/sh\nexec sleep 30\n")
    with pytest.raises(subprocess.TimeoutExpired):
        leave(1)


def test_a_refusal_is_an_error(ray):
    (ray / "refuse").touch()
    with pytest.raises(subprocess.CalledProcessError):
        leave(60)
