"""Stop signals of a training, and messages about how it ended."""

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any


class StopRequest(threading.Event):
    """Event that a stop signal sets."""

    def __init__(self) -> None:
        super().__init__()
        self.signal = 0
        """Number of the signal"""
        self.listeners: set[str] = set()
        """Names of the other threads whose training writes a checkpoint and ends once the event is set"""


_of_main_thread: StopRequest | None = None


@contextmanager
def catch_stop_signals() -> Iterator[StopRequest]:
    """Yield an event that SIGTERM (`ray job stop`, Kubernetes) and the first Ctrl-C set.

    The handlers are the main thread's. They do nothing else, since they interrupt arbitrary code. Other threads share
    the main thread's event while it catches signals.
    """
    global _of_main_thread
    if threading.current_thread() is not threading.main_thread():
        shared = _of_main_thread or StopRequest()
        name = threading.current_thread().name
        shared.listeners.add(name)
        try:
            yield shared
        finally:
            shared.listeners.discard(name)
        return
    stop_requested = StopRequest()

    def handle(number: int, frame: FrameType | None) -> None:
        stop_requested.signal = number
        stop_requested.set()
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # the second one interrupts

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    outer, _of_main_thread = _of_main_thread, stop_requested
    try:
        yield stop_requested
    finally:
        _of_main_thread = outer
        for number, handler in before.items():
            signal.signal(number, handler)


def describe_checkpoint(end: Mapping[str, Any]) -> str:
    """Describe the last complete checkpoint.

    Args:
        end: {"step": last step, "good": step of the last complete checkpoint or None, "reason": why it is not this
            step's}.
    """
    if end["good"] == end["step"]:
        return f"the checkpoint of step {end['good']} is complete"
    why = f" ({end['reason']})" if end.get("reason") else ""
    if end["good"] is None:
        return f"no checkpoint is complete{why}"
    return f"no checkpoint of this step is complete{why}; the last complete one is of step {end['good']}"


def describe_resume(end: Mapping[str, Any]) -> str:
    """Describe the last complete checkpoint, and what running the same command again does."""
    what = "starts from the beginning" if end["good"] is None else "resumes from it"
    return f"{describe_checkpoint(end)}; the same command {what}"
