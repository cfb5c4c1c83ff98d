"""The runner with steps that are functions: order, failures, resources and signals, without Ray."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from pipelines.core.errors import StepFailed
from pipelines.experiments.graph_runner import GraphResult, Task, run_graph

WAIT_SECONDS = 60
DIAMOND = {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"]}


def run(needs, steps, demand=None, capacity=None, finished=()) -> GraphResult[str]:
    """Run functions by name; a step without one returns its name."""

    def prepare(name, outcomes):
        assert set(needs[name]) <= outcomes.keys()
        assert threading.current_thread() is threading.main_thread()
        return Task(steps.get(name, lambda: name), name if name in finished else None)

    return run_graph(needs, prepare, demand or dict.fromkeys(needs, {}), lambda: capacity or {})


def test_independent_steps_run_at_once():
    met = threading.Barrier(2)  # raises BrokenBarrierError if only one arrives

    def meet():
        met.wait(WAIT_SECONDS)
        return "met"

    result = run(DIAMOND, {"b": meet, "c": meet}, dict.fromkeys(DIAMOND, {"CPU": 2}), {"CPU": 4})
    assert result.outcomes == {"a": "a", "b": "met", "c": "met", "d": "d"}
    assert not result.failed
    assert not result.skipped
    times = result.times
    assert all(times[need][1] <= times[name][0] for name, needs in DIAMOND.items() for need in needs)


def test_steps_that_do_not_fit_together_run_one_after_the_other():
    running, most = set(), []

    def step(name):
        def work():
            running.add(name)
            most.append(len(running))
            running.discard(name)
            return name

        return work

    names = [f"step {i}" for i in range(6)]
    result = run(
        {name: [] for name in names}, {n: step(n) for n in names}, dict.fromkeys(names, {"CPU": 2}), {"CPU": 3}
    )
    assert list(result.outcomes) == names
    assert set(most) == {1}
    ends = [result.times[name] for name in names]
    assert all(before[1] <= after[0] for before, after in zip(ends, ends[1:], strict=False))


def test_a_failed_branch_does_not_stop_the_others(capsys):
    failed = threading.Event()

    def fail():
        failed.set()
        raise StepFailed("b: no")

    def work():
        assert failed.wait(WAIT_SECONDS)
        return "done"

    result = run({**DIAMOND, "e": ["c"], "f": ["d"]}, {"b": fail, "c": work})
    assert result.outcomes == {"a": "a", "c": "done", "e": "e"}
    assert list(result.failed) == ["b"]
    assert result.skipped == {"d": ["b"], "f": ["d"]}


def test_a_step_that_is_refused_is_a_failure(caplog):
    def prepare(name, outcomes):
        if name == "b":
            raise ValueError("a bug")
        return Task(lambda: name)

    result = run_graph(DIAMOND, prepare, dict.fromkeys(DIAMOND, {}), dict)
    assert isinstance(result.failed["b"], ValueError)
    assert result.skipped == {"d": ["b"]}
    assert "Traceback" in caplog.text
    assert "b failed" in caplog.text


def test_finished_steps_are_not_run_and_start_no_thread():
    def never():
        raise AssertionError("was run")

    result = run(DIAMOND, dict.fromkeys(DIAMOND, never), finished=DIAMOND)
    assert result.outcomes == {name: name for name in DIAMOND}
    assert not result.times


def test_a_stop_lets_a_training_end_and_starts_nothing_more():
    from pipelines.train.stopping import catch_stop_signals

    def train():
        with catch_stop_signals() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.wait(WAIT_SECONDS)
        raise StepFailed("stopped at step 3, as requested")

    before = signal.getsignal(signal.SIGTERM)
    result = run(DIAMOND, {"a": train})
    assert str(result.failed["a"]) == "stopped at step 3, as requested"
    assert result.skipped == {"b": [], "c": [], "d": []}
    assert signal.getsignal(signal.SIGTERM) == before


INTERRUPTED = """
import os, signal, threading
from pipelines.core.job_process import job_process
from pipelines.experiments.graph_runner import Task, run_graph

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it

def work():
    os.kill(os.getpid(), signal.{name})
    threading.Event().wait()  # blocked in a call that no exception reaches

with job_process():
    run_graph({{"curate": []}}, lambda name, outcomes: Task(work), {{"curate": {{}}}}, dict)
"""


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_ends_the_process_although_a_step_is_blocked(name, status):
    command = [sys.executable, "-c", INTERRUPTED.format(name=name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr == f"error: ended by {name}; run the same command again to resume\n"
