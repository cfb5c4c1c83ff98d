"""However a job ends, it is with its status and one line."""

import os
import signal
import sys
import time

import pytest
from mlflow.exceptions import MlflowException

from pipelines.core import job_process as module
from pipelines.core.artifacts import MissingArtifact
from pipelines.core.config import ConfigError
from pipelines.core.errors import StepFailed
from pipelines.core.job_process import is_expected, job_process
from pipelines.core.storage import StorageError


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ConfigError("x=1: bad"), 2, "error: x=1: bad\n"),
        (MissingArtifact("none there"), 2, "error: none there\n"),
        (StorageError("s3://a: refused"), 1, "error: s3://a: refused\n"),
        (OSError(28, "No space left on device", "/tmp/x"), 1, "error: [Errno 28] No space left on device: '/tmp/x'\n"),
        (BrokenPipeError(32, "Broken pipe"), 1, "error: [Errno 32] Broken pipe\n"),  # of a socket, not of stdout
        (MlflowException("no\n  such run"), 1, "error: no such run\n"),
    ],
)
def test_expected_errors_are_one_line(capsys, error, status, line):
    with pytest.raises(SystemExit) as ended, job_process():
        raise error
    assert ended.value.code == status
    assert capsys.readouterr().err == line


def test_a_fault_of_the_program_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), job_process():
        1 / 0  # noqa: B018
    assert signal.getsignal(signal.SIGTERM) != module._on_sigterm


@pytest.mark.parametrize("status", [None, 0, 2])
def test_closed_output_pipe(monkeypatch, status):
    """`--help | head`, and a bad setting beside it, which keeps its status."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as nobody:
        monkeypatch.setattr(sys, "stdout", nobody)
        with pytest.raises(SystemExit) as ended, job_process():
            print("usage")
            if status is not None:
                sys.exit(status)
        assert ended.value.code == (status or 141)
        module.os.dup2(os.open(os.devnull, os.O_WRONLY), writer)  # else its closing fails


def end_of(work, capfd):
    """(status, stderr) of a process that does this within `job_process`."""
    child = os.fork()
    if not child:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
        try:
            with job_process():
                work()
        finally:
            os._exit(99)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), capfd.readouterr().err


def kill_self(number=signal.SIGTERM):
    os.kill(os.getpid(), number)
    time.sleep(30)


def test_sigterm_is_one_line_and_143(capfd):
    told = "error: ended by SIGTERM; run the same command again to resume\n"
    assert end_of(kill_self, capfd) == (143, told)


def test_sigterm_while_ray_starts(capfd):
    """Ray has a handler of its own then."""
    status, told = end_of(lambda: sys.exit(15), capfd)
    assert status == 143
    assert told.startswith("error: ended by SIGTERM; ")


def test_sigterm_in_a_destructor(capfd):
    """Python lets no exception out of one, and would only print it."""

    class Ends:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)

    def work():
        ends = Ends()
        del ends
        time.sleep(30)

    started = time.monotonic()
    told = "error: ended by SIGTERM; run the same command again to resume\n"
    assert end_of(work, capfd) == (143, told)
    assert time.monotonic() - started < 10


def test_ctrl_c_is_one_line_and_130(capfd):
    status, told = end_of(lambda: kill_self(signal.SIGINT), capfd)
    assert status == 130
    assert told.startswith("error: ended by SIGINT; ")
    assert told.count("\n") == 1


def test_a_job_that_swallows_the_interrupt(capfd):
    def work():
        with pytest.raises(KeyboardInterrupt):
            kill_self()

    assert end_of(work, capfd)[0] == 143


def test_a_clean_up_that_never_ends(capfd, monkeypatch):
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.3)

    def work():
        try:
            kill_self()
        finally:
            time.sleep(30)

    status, told = end_of(work, capfd)
    assert status == 143
    assert told.startswith("error: still busy 0 s after the signal; ")


def test_errors_that_need_no_traceback():
    assert all(map(is_expected, (ConfigError(), StepFailed(), MissingArtifact(), OSError(), MlflowException(""))))
    assert not any(map(is_expected, (ValueError(), KeyError(), MemoryError())))
