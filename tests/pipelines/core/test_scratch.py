import os
import signal
import subprocess
import sys
import tempfile

import pytest

from pipelines.core.errors import StorageError
from pipelines.core.scratch import scratch_folder

HOLD = """
import sys
from pipelines.core.scratch import scratch_folder
with scratch_folder() as folder:
    (folder / "rows").write_text("unfinished")
    print(folder, flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """The temporary folder of this test and of its processes."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield
    tempfile.tempdir = None


def hold():
    """Start a process that has a folder; return it and the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    return process, os.path.dirname(process.stdout.readline().strip())


def test_a_folder_is_empty_and_removed_in_the_end(tmp_path):
    with pytest.raises(ZeroDivisionError), scratch_folder() as folder:
        assert list(folder.iterdir()) == []
        assert tmp_path in folder.parents
        (folder / "file").write_text("x")
        raise ZeroDivisionError
    assert not folder.parent.exists()


def test_a_folder_that_somebody_else_made_is_not_used(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / f"asymflow-{os.getuid()}").symlink_to(elsewhere)
    with pytest.raises(StorageError, match="is not a folder of this user; remove it, or set TMPDIR"):
        scratch_folder().__enter__()
    assert not list(elsewhere.iterdir())


def test_the_folder_of_a_killed_process_is_removed_and_that_of_a_living_one_stays():
    killed, left = hold()
    living, kept = hold()
    try:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert os.path.exists(left)
        with scratch_folder() as folder:
            assert not os.path.exists(left)
            assert os.path.exists(f"{kept}/files/rows")
            assert str(folder.parent) not in (left, kept)
    finally:
        killed.kill()
        living.communicate("\n", timeout=60)
    assert living.returncode == 0
    assert not os.path.exists(kept)
