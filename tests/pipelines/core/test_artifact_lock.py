"""Two identical jobs at once: one works, the other says so and waits; what a dead one held is free."""

import json
import subprocess
import sys
import threading
import time

import pytest

from pipelines.core import artifact_lock, storage
from pipelines.core.artifact_lock import LOCK, hold_artifact_lock
from pipelines.core.s3 import StorageError


@pytest.fixture(params=["local", "s3"])
def folder(request, tmp_path, monkeypatch):
    monkeypatch.setattr(artifact_lock, "_POLL_SECONDS", 0.05)
    return str(tmp_path / "step" / "id") if request.param == "local" else f"{request.getfixturevalue('s3')}/step/id"


def in_thread(run):
    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_the_second_job_waits_and_logs_the_holder(folder, caplog):
    order = []

    def second():
        with hold_artifact_lock(folder):
            order.append("second")

    with hold_artifact_lock(folder):
        waiting = in_thread(second)
        while "is already building" not in caplog.text:
            time.sleep(0.01)
        order.append("first")
    waiting.join(20)
    assert order == ["first", "second"]
    assert f"is already building {folder}: waiting until it ends" in caplog.text
    assert "process " in caplog.text


def test_others_do_not_wait_and_no_artifact_lists_it(folder, caplog):
    with hold_artifact_lock(folder), hold_artifact_lock(f"{folder}2"):
        assert storage.list_files(folder) == []
    assert caplog.text == ""


def test_an_error_frees_it(folder, caplog):
    with pytest.raises(RuntimeError), hold_artifact_lock(folder):
        raise RuntimeError
    with hold_artifact_lock(folder):
        pass
    assert caplog.text == ""


def test_the_lock_of_a_killed_process_is_released(tmp_path):
    code = (
        "import sys, time; from pipelines.core.artifact_lock import hold_artifact_lock\n"
        "with hold_artifact_lock(sys.argv[1]):\n    print('held', flush=True); time.sleep(60)"
    )
    job = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert job.stdout.readline() == "held\n"
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == job.pid
    job.kill()
    job.wait()
    with hold_artifact_lock(str(tmp_path)):
        pass


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(StorageError, match="cannot write: Not a directory"),
        hold_artifact_lock(str(tmp_path / "file" / "id")),
    ):
        pass


def test_an_expired_lease_is_taken_over(s3, monkeypatch, caplog):
    """Of a job whose machine hangs, or is cut off."""
    monkeypatch.setattr(artifact_lock, "_POLL_SECONDS", 0.1)
    monkeypatch.setattr(artifact_lock, "LEASE_SECONDS", 0.5)
    monkeypatch.setattr(artifact_lock, "RENEW_SECONDS", 2.0)
    with hold_artifact_lock(s3):
        with hold_artifact_lock(s3):
            while "another job took it" not in caplog.text:
                time.sleep(0.05)
        assert ": waiting until" in caplog.text


def test_a_lease_that_is_renewed_is_not_taken(s3, monkeypatch, caplog):
    monkeypatch.setattr(artifact_lock, "LEASE_SECONDS", 1.5)
    monkeypatch.setattr(artifact_lock, "RENEW_SECONDS", 0.2)
    lease = artifact_lock._Lease(storage.join(s3, LOCK))
    with hold_artifact_lock(s3):
        end = time.monotonic() + 3
        while time.monotonic() < end:
            assert not lease.acquire()
            time.sleep(0.2)
    assert lease.acquire()
    assert "another job took it" not in caplog.text


def test_an_answer_that_is_lost_does_not_make_a_job_wait_for_itself(faulty_s3, monkeypatch, caplog):
    """The object was written, the answer is an error: the next attempt finds one there, which is its own."""
    uri, server = faulty_s3
    store, lost = server.application, []

    def lose_the_first_answer(environ, start_response):
        if lost or environ["REQUEST_METHOD"] != "PUT":
            return store(environ, start_response)
        lost.append(b"".join(store(environ, lambda *answer: None)))
        start_response("503 Slow Down", [("Content-Type", "application/xml")])
        return [b"<Error><Code>SlowDown</Code><Message>lost</Message></Error>"]

    monkeypatch.setattr(server, "application", lose_the_first_answer)
    with hold_artifact_lock(uri):
        assert lost
        assert server.count("PUT") == 2
    assert "already building" not in caplog.text


def test_a_refused_write_is_an_error_at_once(faulty_s3):
    uri, server = faulty_s3
    server.deny("PUT")
    with pytest.raises(StorageError, match="AccessDenied"), hold_artifact_lock(uri):
        pass
