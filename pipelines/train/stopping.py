"""How a training is asked to stop, and what it says of its end."""

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def noting_signals() -> Iterator[threading.Event]:
    """In the driver's main thread: SIGTERM (`ray job stop`, Kubernetes) and the first Ctrl-C set the event, and nothing
    more: a handler runs in the middle of whatever the thread was doing."""
    asked = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        asked.set()
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # the second one interrupts

    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def describe_checkpoint(end: Mapping[str, Any]) -> str:
    """Say which checkpoint is the last good one. `end` is {"step": where the training is, "good": step of the last
    complete checkpoint or None, "reason": why it is not this step's}."""
    if end["good"] == end["step"]:
        return f"the checkpoint of step {end['good']} is complete"
    why = f" ({end['reason']})" if end.get("reason") else ""
    if end["good"] is None:
        return f"no checkpoint is complete{why}"
    return f"no checkpoint of it is complete{why}; the last good one is that of step {end['good']}"


def describe_resume(end: Mapping[str, Any]) -> str:
    """Say the same, and what the same command then does."""
    what = "begins anew" if end["good"] is None else "resumes from it"
    return f"{describe_checkpoint(end)}; the same command {what}"
