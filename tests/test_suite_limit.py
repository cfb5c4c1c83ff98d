"""The test suite cannot hang: a run has a limit, and says where it stood."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import suite_limit

CODE = """
import subprocess, sys, time
import pytest

@pytest.fixture(scope="session")
def stuck():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    print(child.pid, file=open("child", "w"))
    yield
    wait_for_what_never_comes()

def wait_for_what_never_comes():
    time.sleep(60)

def test_nothing(stuck):
    pass
"""


@pytest.mark.slow
def test_a_hanging_run_ends_with_its_stacks(tmp_path):
    """In the teardown of a session's fixture, for which the limit of a test does not count."""
    (tmp_path / "test_stuck.py").write_text(CODE)
    (tmp_path / "conftest.py").write_text(
        "import suite_limit\ndef pytest_configure(config):\n    config.limit = suite_limit.start(5 / 60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(suite_limit.__file__).parent)}
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=50,
    )  # fmt: skip
    assert done.returncode == suite_limit.HUNG
    assert time.monotonic() - started < 45
    assert "error: the tests did not end within 0.08" in done.stderr
    assert "in wait_for_what_never_comes" in done.stderr
    child = int((tmp_path / "child").read_text())
    assert f"{child} " in done.stderr
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_this_run_has_the_limit_too(request):
    assert 0 < request.config.getoption("--suite-minutes") <= 60
    timers = [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
    assert any(timer.function is suite_limit.end for timer in timers)
