import os
import subprocess
import sys
import time

import pytest

from pipelines.core import prebuild


@pytest.fixture
def lock(tmp_path):
    path = tmp_path / "py311_cpu" / "deepspeed_shm_comm" / "lock"
    path.parent.mkdir(parents=True)
    return path


def test_lock_of_a_killed_build_is_removed(tmp_path, lock):
    """Made by torch's own lock in a process that is then killed, as a build is by an impatient person."""
    script = (
        "import sys, time; from torch.utils.file_baton import FileBaton; baton = FileBaton(sys.argv[1]); "
        "assert baton.try_acquire(); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(lock)], stdout=subprocess.PIPE, text=True) as builder:
        assert builder.stdout is not None
        assert builder.stdout.readline() == "held\n"
        assert prebuild.remove_stale_locks(tmp_path) == []
        assert lock.exists()
        builder.kill()
    assert prebuild.remove_stale_locks(tmp_path) == [lock]
    assert not lock.exists()


def test_other_files_of_that_name_stay(tmp_path):
    other = tmp_path / "someones" / "lock"
    other.parent.mkdir()
    other.touch()
    assert prebuild.remove_stale_locks(tmp_path) == []
    assert other.exists()
    assert prebuild.remove_stale_locks(tmp_path / "absent") == []


def test_without_proc_a_lock_is_stale_when_it_is_old(tmp_path, lock, monkeypatch):
    monkeypatch.setattr(prebuild, "PROCESSES", tmp_path / "absent")
    lock.touch()
    assert prebuild.remove_stale_locks(tmp_path) == []
    an_hour_ago = time.time() - 3600
    os.utime(lock, (an_hour_ago, an_hour_ago))
    assert prebuild.remove_stale_locks(tmp_path) == [lock]


def test_nothing_is_built_where_there_is_cuda(lock, tmp_path, monkeypatch):
    lock.touch()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    prebuild.main()
    assert lock.exists()


def test_folder_follows_torch(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert prebuild.extensions_folder() == tmp_path
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR")
    assert prebuild.extensions_folder().name == "torch_extensions"
