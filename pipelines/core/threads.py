"""Run a function in a thread that the end of the process does not wait for, with a label for its messages."""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")
_LABEL: ContextVar[str] = ContextVar("label", default="")


def run_in_thread(call: Callable[[], T], name: str, label: str = "") -> "Future[T]":
    """Call a function in a daemon thread.

    Args:
        call: The function. Whatever it raises, also KeyboardInterrupt, is the future's exception.
        name: Name of the thread.
        label: Prefix of the thread's messages; see `with_label`.

    Returns:
        The future of its result.
    """
    future: Future[T] = Future()

    def run() -> None:
        _LABEL.set(label)
        try:
            future.set_result(call())
        except BaseException as error:  # whatever it is, the thread that waits raises it
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


def with_label(message: str) -> str:
    """Return a message with this thread's label as prefix, unless it begins with the label or there is none."""
    label = _LABEL.get()
    is_labelled = not label or f"{message} ".startswith((f"{label}:", f"{label} "))
    return message if is_labelled else f"{label}: {message}"


def add_label(record: logging.LogRecord) -> bool:
    """Add this thread's label to a log record; a filter of a handler."""
    record.msg, record.args = with_label(record.getMessage()), None
    return True
