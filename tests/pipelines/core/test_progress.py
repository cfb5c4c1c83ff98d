import os
import pty
import re
import subprocess
import sys
import termios
import threading
from pathlib import Path

import pytest

from pipelines.core import progress
from pipelines.core.progress import SECONDS_PER_LINE, LogLines, open_worker_bar, track

LOOPS = """
from pipelines.core.progress import track
for label in ("read", "write"):
    assert list(track(range(1000), 1000, label, "shard")) == list(range(1000))
"""
LOADS = """
from pipelines.sample.sampler import PipelineSampler
PipelineSampler("models/toy_klein", "models/toy_asymflow").latent
"""
ROOT = Path(__file__).parents[3]


@pytest.fixture
def clock(monkeypatch):
    """Call with seconds to let them pass."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(LogLines, "_last", threading.local())

    def wait(seconds):
        now[0] += seconds

    return wait


def test_a_log_gets_a_line_every_thirty_seconds(clock, capsys):
    for _ in track(range(400), 400, "encode", "shard"):
        clock(1.5)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "encode: shard 1 of 400"
    assert lines[1] == "encode: shard 21 of 400, 1.5 s per shard, 09:28 left"
    assert len(lines) == 400 * 1.5 / SECONDS_PER_LINE


def test_short_loops_share_the_lines(clock, capsys):
    for stage in range(60):
        for _ in track(range(3), 3, f"stage {stage}", "batch"):
            clock(1 / 3)
    assert [line.split(":")[0] for line in capsys.readouterr().err.splitlines()] == ["stage 0", "stage 30"]


def test_speed_excludes_resumed_items(clock, capsys):
    bar = open_worker_bar("finetune", 15_000, "step", on_terminal=False)
    bar.update(12_000)
    clock(60)
    bar.update()
    assert capsys.readouterr().err.splitlines() == [
        "finetune: step 12000 of 15000",
        "finetune: step 12001 of 15000, 60 s per step, 49:59:00 left",
    ]


def test_a_failing_loop_shows_its_own_error(capsys):
    with pytest.raises(ZeroDivisionError):
        for _ in track((1 / n for n in (1, 0)), 2, "read", "shard"):
            pass
    assert "Traceback" not in capsys.readouterr().err


def test_a_pipe_gets_lines_and_a_terminal_bars():
    done = subprocess.run([sys.executable, "-c", LOOPS], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stdout == ""
    assert done.stderr == "read: shard 1 of 1000\n"
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    assert subprocess.run([sys.executable, "-c", LOOPS], stderr=theirs, timeout=60).returncode == 0
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert "\r" in shown
    assert len(re.findall(r"(read|write): 100%\|", shown)) >= 2


@pytest.mark.slow
def test_models_load_without_bars():
    """Of a pipeline, its text encoder, and the latent model with its decoder."""
    done = subprocess.run([sys.executable, "-c", LOADS], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "%|" not in done.stderr
