"""Stop signals of a training, and messages about how it ended."""

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def catch_stop_signals() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM (`ray job stop`, Kubernetes) and the first Ctrl-C set.

    For the driver's main thread. The handler does nothing else, since it interrupts arbitrary code.
    """
    stop_requested = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        stop_requested.set()
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # the second one interrupts

    if threading.current_thread() is not threading.main_thread():
        yield stop_requested
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop_requested
    finally:
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
