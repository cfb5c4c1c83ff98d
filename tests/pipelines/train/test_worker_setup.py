"""The controller's limit of the wait for resources, by the states that Ray Train tells it."""

import pytest
from ray.train.v2._internal.execution.controller.state import ReschedulingState, RunningState, SchedulingState

from pipelines.train import worker_setup
from pipelines.train.worker_setup import ControllerGuard, InsufficientResources, StoppableBackend, StoppableTorch


@pytest.fixture
def guard(monkeypatch):
    """A guard of a minute, and a clock that a test sets; states without their content."""
    guard = ControllerGuard(60, "attempt")
    clock = [0.0]
    monkeypatch.setattr(worker_setup.time, "monotonic", lambda: clock[0])

    def tell(state, at):
        clock[0] = at
        guard.after_controller_state_update(None, object.__new__(state))

    guard.tell = tell
    return guard


def test_a_wait_is_given_up_at_its_limit(guard):
    guard.tell(SchedulingState, 0)
    guard.tell(ReschedulingState, 59)
    with pytest.raises(InsufficientResources, match="no room for the workers for 1 minutes"):
        guard.tell(ReschedulingState, 60)


def test_the_wait_is_counted_from_its_first_attempt(guard):
    for at in (0, 20, 40):
        guard.tell(SchedulingState, at)
    with pytest.raises(InsufficientResources):
        guard.tell(ReschedulingState, 60)


def test_workers_that_ran_get_the_whole_time_again(guard):
    guard.tell(SchedulingState, 0)
    guard.tell(RunningState, 50)
    guard.tell(SchedulingState, 1000)
    guard.tell(ReschedulingState, 1059)
    with pytest.raises(InsufficientResources):
        guard.tell(ReschedulingState, 1061)


def test_the_backend_of_the_workers_notes_sigterm():
    assert StoppableTorch().backend_cls is StoppableBackend
