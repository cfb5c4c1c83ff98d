"""How a job's process ends: with a status and at most one line on stderr, whatever happens to it.

Exit status: 0; 2 for a bad setting; 143 for SIGTERM, 130 for Ctrl-C, 141 where nobody reads its output; 1 otherwise.
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
"""Given to what a job still has to do once it is asked to end; then its process ends all the same"""
_AGAIN = "the same command goes on from what is complete"
_SIGTERM, _SIGINT, _SIGPIPE = (128 + number for number in (signal.SIGTERM, signal.SIGINT, signal.SIGPIPE))
_asked_to_end, _swallowed = threading.Event(), threading.Event()


@contextmanager
def job_process(*others: type[Exception]) -> Iterator[None]:
    """Run a job's `main`: errors of settings and of the outside world end it in one line, others in a traceback.

    SIGTERM raises KeyboardInterrupt in the main thread, the one exception that Ray lets through from all of its waits.
    May be nested.

    Args:
        others: errors of the job's own whose message a user can read, for status 1.
    """
    failures: tuple[type[Exception], ...] = (StepFailed, *others)
    with _raising_on_sigterm():
        try:
            yield
            sys.stdout.flush()  # here, where an error can still be handled
        except SystemExit as ended:
            if ended.code == signal.SIGTERM:  # of Ray's own handler, which stands while it starts
                _asked_to_end.set()
                _limit_the_end(_SIGTERM)
                _end_interrupted()
            if not ended.code and not _flushed():
                _end_without_reader()
            raise
        except KeyboardInterrupt:
            _end_interrupted()
        except ConfigError as error:
            _end(2, str(error))
        except failures as error:
            _end(1, str(error))
        except MissingArtifact as error:
            _end(2, str(error))
        except OSError as error:
            if isinstance(error, BrokenPipeError) and not _flushed():
                _end_without_reader()
            _end(1, str(error))
        except Exception as error:
            if not _is_of_tracking(error):
                raise
            _end(1, str(error))
        if _asked_to_end.is_set():  # the job took it for Ctrl-C, which is how some are ended
            _end_interrupted()


def _is_of_tracking(error: Exception) -> bool:
    """A job that has not imported MLflow has none of its errors."""
    mlflow = sys.modules.get("mlflow.exceptions")
    return mlflow is not None and isinstance(error, mlflow.MlflowException)


def _end(status: int, message: str) -> None:
    print(f"error: {hide_secrets(' '.join(message.split()))}", file=sys.stderr)
    sys.exit(status)


def _flushed() -> bool:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return False
    return True


def _end_without_reader() -> None:
    """Python flushes stdout once more as it ends, and would complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(_SIGPIPE)


@contextmanager
def _raising_on_sigterm() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before, before_unraisable = signal.signal(signal.SIGTERM, _on_sigterm), sys.unraisablehook

    def on_unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
        """Raise again what a destructor was interrupted by, from where Python lets nothing out."""
        if unraisable.exc_type is KeyboardInterrupt and _asked_to_end.is_set():
            _swallowed.set()  # and not at once, which would be inside the destructor still
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
    if _swallowed.is_set():
        _swallowed.clear()
    elif _asked_to_end.is_set():
        return  # it is ending
    else:
        _asked_to_end.set()
        _limit_the_end(_SIGTERM)
    raise KeyboardInterrupt


def _limit_the_end(status: int) -> None:
    """A clean-up that waits for what will not answer, or code that swallowed the exception, must not keep it alive."""

    def give_up() -> None:
        os.write(2, f"error: asked to end, and still busy after {GRACE_SECONDS:.0f} s; {_AGAIN}\n".encode())
        os._exit(status)

    timer = threading.Timer(GRACE_SECONDS, give_up)
    timer.daemon = True
    timer.start()


def _end_interrupted() -> None:
    """Without the clean-ups at Python's end, in which Ray aborts when it is interrupted in the middle of its work."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    status = _SIGTERM if _asked_to_end.is_set() else _SIGINT
    if status == _SIGINT:
        _limit_the_end(status)
    if "ray" in sys.modules:
        with suppress(Exception):
            sys.modules["ray"].shutdown()
    with suppress(OSError):
        sys.stdout.flush()
    os.write(2, f"error: ended by {signal.Signals(status - 128).name}; {_AGAIN}\n".encode())
    os._exit(status)
