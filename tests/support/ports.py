"""Ports of loopback for servers that tests start."""

import socket
import time
import urllib.request
from collections.abc import Callable


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait_for(answer: Callable[[], bool], seconds: float = 120, every: float = 0.2) -> None:
    """Until `answer()` is true. AssertionError after a while."""
    deadline = time.monotonic() + seconds
    while not answer():
        assert time.monotonic() < deadline, f"nothing after {seconds} seconds"
        time.sleep(every)


def answers(url: str) -> bool:
    """Whether a server is there; a refusal is an answer too."""
    try:
        urllib.request.urlopen(url, timeout=2)
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True
