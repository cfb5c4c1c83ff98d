import os
import signal
import threading
import time

import pytest

from pipelines.core.threads import run_in_thread
from pipelines.train.stopping import catch_stop_signals, describe_resume


def test_signal_handlers_are_restored():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    for number in (signal.SIGTERM, signal.SIGINT):
        with catch_stop_signals() as asked:
            os.kill(os.getpid(), number)
            assert asked.is_set()
    with catch_stop_signals() as asked, pytest.raises(KeyboardInterrupt):
        for _ in range(2):  # the second Ctrl-C interrupts at once
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_training_in_a_thread_hears_the_signals_of_the_main_thread():
    def train():
        with catch_stop_signals() as stop:
            listening.set()
            return stop.wait(60)

    listening = threading.Event()
    with catch_stop_signals() as stop:
        training = run_in_thread(train, "finetune")
        assert listening.wait(60)
        assert stop.listeners == {"finetune"}
        os.kill(os.getpid(), signal.SIGTERM)
        assert training.result(60)
        assert stop.signal == signal.SIGTERM
        assert not stop.listeners
    with catch_stop_signals() as later:  # has nothing of the earlier one
        assert not later.is_set()


@pytest.mark.parametrize(
    ("end", "told"),
    [
        (
            {"step": 9, "good": 9, "reason": ""},
            "the checkpoint of step 9 is complete; the same command resumes from it",
        ),
        (
            {"step": 9, "good": 5, "reason": "StorageError: 403"},
            "no checkpoint of this step is complete (StorageError: 403); the last complete one is of step 5; "
            "the same command resumes from it",
        ),
        (
            {"step": 9, "good": None, "reason": "StorageError: 403"},
            "no checkpoint is complete (StorageError: 403); the same command starts from the beginning",
        ),
    ],
)
def test_the_last_complete_checkpoint_is_reported(end, told):
    assert describe_resume(end) == told
