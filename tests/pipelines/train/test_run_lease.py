import threading
import time

import pytest
from tenacity import stop_after_attempt

from pipelines.core import storage
from pipelines.train.run_lease import LeaseMonitor, RunLease, WorkerSignal


def wait_for(lease_monitor: LeaseMonitor, signal: WorkerSignal) -> None:
    deadline = time.monotonic() + 10
    while lease_monitor.signal != signal:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_newest_attempt_fences_older_ones(tmp_path):
    older = RunLease.claim(str(tmp_path))
    assert not older.is_fenced()
    newer = RunLease.claim(str(tmp_path))
    assert older.is_fenced()
    assert not newer.is_fenced()


def test_a_lease_monitor_detects_a_stop_during_an_outage_and_a_newer_attempt_after_it(faulty_s3):
    uri, server = faulty_s3
    lease, asked = RunLease.claim(uri), threading.Event()
    lease_monitor = LeaseMonitor(lease, asked.is_set)
    server.deny("GET .*attempt.json")
    time.sleep(1.5)
    assert lease_monitor.signal == WorkerSignal.CONTINUE
    asked.set()
    wait_for(lease_monitor, WorkerSignal.STOP)
    RunLease.claim(uri)
    server.clear()
    wait_for(lease_monitor, WorkerSignal.FENCED)
    lease_monitor.close()


def test_failed_polls_are_not_retried(faulty_s3, caplog, monkeypatch):
    """The next poll is a second away: with eight retries each, an outage would fill the log."""
    uri, server = faulty_s3
    lease = RunLease.claim(uri)
    lease_monitor = LeaseMonitor(lease, lambda: False)
    server.slow_down("(GET|HEAD) .*attempt.json")
    server.requests.clear()
    time.sleep(2.5)
    lease_monitor.close()
    assert 1 <= server.count("(GET|HEAD) .*attempt.json") <= 4
    polled = storage.join(uri, ".train", "attempt.json")  # the log also has the retries of other tests' uploads
    assert f"{polled}: attempt" not in caplog.text
    monkeypatch.setattr("pipelines.core.s3.RETRIES.stop", stop_after_attempt(2))
    with pytest.raises(storage.StorageError):
        lease.is_fenced()
    assert f"{polled}: attempt" in caplog.text


def test_a_hanging_poll_does_not_hide_a_stop():
    class Hanging(RunLease):
        def is_fenced(self):
            time.sleep(60)

    lease_monitor = LeaseMonitor(Hanging("", ""), lambda: True)
    wait_for(lease_monitor, WorkerSignal.STOP)
    lease_monitor.close()


def test_the_greatest_signal_wins():
    assert max(WorkerSignal) == WorkerSignal.FENCED
    assert WorkerSignal.CONTINUE < WorkerSignal.CHECK_PREEMPTION < WorkerSignal.STOP < WorkerSignal.RESTART


@pytest.mark.parametrize("junk", [b"", b"{"])
def test_a_file_that_cannot_be_read_is_an_error_of_the_store_not_a_fence(tmp_path, junk):
    lease = RunLease.claim(str(tmp_path))
    storage.write_bytes(str(tmp_path / ".train" / "attempt.json"), junk)
    with pytest.raises(ValueError):
        lease.is_fenced()
