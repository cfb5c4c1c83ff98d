import os
import threading

import pytest

from pipelines.core.environment import environment
from pipelines.core.threads import run_in_thread


def test_variables_are_restored(monkeypatch):
    monkeypatch.setenv("ASYMFLOW_KEPT", "before")
    monkeypatch.delenv("ASYMFLOW_NEW", raising=False)
    with pytest.raises(ValueError), environment({"ASYMFLOW_KEPT": "now", "ASYMFLOW_NEW": "now"}):
        assert os.environ["ASYMFLOW_KEPT"] == os.environ["ASYMFLOW_NEW"] == "now"
        raise ValueError
    assert os.environ["ASYMFLOW_KEPT"] == "before"
    assert "ASYMFLOW_NEW" not in os.environ


def test_a_second_thread_does_not_restore_what_the_first_one_set(monkeypatch):
    monkeypatch.delenv("ASYMFLOW_NEW", raising=False)
    entering = threading.Event()

    def second():
        entering.set()
        with environment({"ASYMFLOW_NEW": "second"}):
            return os.environ["ASYMFLOW_NEW"]

    with environment({"ASYMFLOW_NEW": "first"}):
        waiting = run_in_thread(second, "second")
        assert entering.wait(60)
        assert os.environ["ASYMFLOW_NEW"] == "first"
        assert not waiting.done()
    assert waiting.result(60) == "second"
    assert "ASYMFLOW_NEW" not in os.environ
