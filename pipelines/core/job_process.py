"""End a job's process with an exit status and at most one line on stderr, also on signals.

Exit status: 0; 2 for a bad setting; 143 for SIGTERM, 130 for Ctrl-C, 141 for a closed output pipe; 1 otherwise.
"""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from pipelines.core.config import ConfigError
from pipelines.core.credentials import hide_secrets
from pipelines.core.errors import MissingArtifact, StepFailed

GRACE_SECONDS = 20.0
"""Time that a job has for clean-up after a signal; then its process exits"""
_HOW_TO_RESUME = "run the same command again to resume"
_SIGTERM, _SIGINT, _SIGPIPE = (128 + number for number in (signal.SIGTERM, signal.SIGINT, signal.SIGPIPE))
_stop_requested, _interrupt_swallowed = threading.Event(), threading.Event()


@contextmanager
def job_process(*others: type[Exception]) -> Iterator[None]:
    """Run a job's `main`: expected errors (settings, storage, MLflow) end it in one line, others with a traceback.

    SIGTERM raises KeyboardInterrupt in the main thread, the only exception that all of Ray's blocking calls propagate.
    May be nested.

    Args:
        others: The job's own expected errors, which end it with status 1.
    """
    failures: tuple[type[Exception], ...] = (StepFailed, *others)
    with _interrupt_on_sigterm():
        try:
            yield
            sys.stdout.flush()  # an error can still be handled here
        except SystemExit as ended:
            if ended.code == signal.SIGTERM:  # raised by Ray's own handler, which is active while Ray starts
                _stop_requested.set()
                _exit_after_grace(_SIGTERM)
                _exit_interrupted()
            if not ended.code and not _flush_stdout():
                _exit_on_closed_pipe()
            raise
        except KeyboardInterrupt:
            _exit_interrupted()
        except ConfigError as error:
            _exit_with_error(2, str(error))
        except failures as error:
            _exit_with_error(1, str(error))
        except MissingArtifact as error:
            _exit_with_error(2, str(error))
        except OSError as error:
            if isinstance(error, BrokenPipeError) and not _flush_stdout():
                _exit_on_closed_pipe()
            _exit_with_error(1, str(error))
        except Exception as error:
            if not _is_mlflow_error(error):
                raise
            _exit_with_error(1, str(error))
        if _stop_requested.is_set():  # the job handled it like Ctrl-C, the normal way to end some jobs
            _exit_interrupted()


def is_expected(error: Exception) -> bool:
    """Return whether an error's message tells a user everything, so that no traceback is needed."""
    return isinstance(error, ConfigError | StepFailed | MissingArtifact | OSError) or _is_mlflow_error(error)


def _is_mlflow_error(error: Exception) -> bool:
    """Return whether MLflow raised an error, without importing MLflow."""
    mlflow = sys.modules.get("mlflow.exceptions")
    return mlflow is not None and isinstance(error, mlflow.MlflowException)


def _exit_with_error(status: int, message: str) -> None:
    print(f"error: {hide_secrets(' '.join(message.split()))}", file=sys.stderr)
    sys.exit(status)


def _flush_stdout() -> bool:
    """Flush stdout; return False if its reader has closed the pipe."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return False
    return True


def _exit_on_closed_pipe() -> None:
    """Exit with stdout replaced by /dev/null, because Python flushes stdout at exit and would report an error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(_SIGPIPE)


@contextmanager
def _interrupt_on_sigterm() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before, before_unraisable = signal.signal(signal.SIGTERM, _on_sigterm), sys.unraisablehook

    def on_unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
        """Raise KeyboardInterrupt again if it interrupted a destructor, where Python ignores exceptions."""
        if unraisable.exc_type is KeyboardInterrupt and _stop_requested.is_set():
            _interrupt_swallowed.set()  # delayed, because now it would still be raised inside the destructor
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        else:
            before_unraisable(unraisable)

    sys.unraisablehook = on_unraisable
    try:
        yield
    finally:
        sys.unraisablehook = before_unraisable
        signal.signal(signal.SIGTERM, before)


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    if _interrupt_swallowed.is_set():
        _interrupt_swallowed.clear()
    elif _stop_requested.is_set():
        return  # the process is already ending
    else:
        _stop_requested.set()
        _exit_after_grace(_SIGTERM)
    raise KeyboardInterrupt


def _exit_after_grace(status: int) -> None:
    """Exit after GRACE_SECONDS even if a clean-up hangs or code swallowed the exception."""

    def exit_now() -> None:
        os.write(2, f"error: still busy {GRACE_SECONDS:.0f} s after the signal; {_HOW_TO_RESUME}\n".encode())
        os._exit(status)

    timer = threading.Timer(GRACE_SECONDS, exit_now)
    timer.daemon = True
    timer.start()


def _exit_interrupted() -> None:
    """Exit without Python's exit handlers, in which an interrupted Ray aborts."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    status = _SIGTERM if _stop_requested.is_set() else _SIGINT
    if status == _SIGINT:
        _exit_after_grace(status)
    if "ray" in sys.modules:
        with suppress(Exception):
            sys.modules["ray"].shutdown()
    with suppress(OSError):
        sys.stdout.flush()
    os.write(2, f"error: ended by {signal.Signals(status - 128).name}; {_HOW_TO_RESUME}\n".encode())
    os._exit(status)
