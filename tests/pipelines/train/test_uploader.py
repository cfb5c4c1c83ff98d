"""Background upload of checkpoints: a store that is slow or unavailable delays no step."""

import threading
import time

import pytest

from pipelines.train import uploader as module
from pipelines.train.uploader import Uploader


def test_a_failed_upload_does_not_stop_later_ones(caplog):
    written = []

    def write(tensors, state):
        if state["step"] == 2:
            raise OSError("no space left")
        written.append(state["step"])

    uploader = Uploader(write)
    for step in (1, 2, 3):
        uploader.submit({}, {"step": step})
    assert uploader.wait(10)
    assert written == [1, 3]
    assert uploader.failed == 1
    assert uploader.good == 3
    assert "of step 2 failed, training continues: OSError: no space left" in caplog.text
    uploader.submit({}, {"step": 2})
    assert not uploader.wait(10)
    assert uploader.good == 3
    assert uploader.reason == "OSError: no space left"


def test_uploads_run_in_the_background_one_at_a_time():
    log: list[str] = []

    def write(tensors, state):
        log.append(f"begin {state['step']}")
        time.sleep(0.3)
        log.append(f"end {state['step']}")

    uploader = Uploader(write)
    started = time.monotonic()
    uploader.submit({}, {"step": 1})
    assert time.monotonic() - started < 0.2
    uploader.submit({}, {"step": 2})
    assert uploader.wait(10)
    assert log == ["begin 1", "end 1", "begin 2", "end 2"]


def test_a_store_that_hangs_delays_no_step_and_gets_the_newest_when_it_answers(monkeypatch, caplog):
    monkeypatch.setattr(module, "PATIENCE", 0.2)
    answers, written = threading.Event(), []

    def write(tensors, state):
        answers.wait(20)
        written.append(state["step"])

    uploader = Uploader(write, good=5)
    longest = 0.0
    for step in (10, 15, 20, 25):
        before = time.monotonic()
        uploader.submit({}, {"step": step})
        longest = max(longest, time.monotonic() - before)
        time.sleep(0.05)
    assert longest < 1.5
    assert "no checkpoint of step 15: that of step 10 is still being written" in caplog.text
    calls = []
    assert not uploader.wait(0.3, lambda: calls.append(1))
    assert calls
    assert uploader.good == 5
    assert uploader.reason == "the store has not taken it after 0 s"
    answers.set()
    assert uploader.wait(10)
    assert written == [10, 25]
    assert uploader.good == 25


@pytest.mark.parametrize("seconds", [0.0, 0.5])
def test_waiting_without_uploads_returns_at_once(seconds):
    started = time.monotonic()
    assert Uploader(lambda tensors, state: None).wait(seconds)
    assert time.monotonic() - started < 0.3
