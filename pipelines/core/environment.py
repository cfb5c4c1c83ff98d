"""Set environment variables for a while."""

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

_LOCK = threading.RLock()


@contextmanager
def environment(changes: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables inside the context; other threads wait, since the environment is the process's.

    Args:
        changes: Values by name.
    """
    with _LOCK:
        before = {name: os.environ.get(name) for name in changes}
        os.environ.update(changes)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
