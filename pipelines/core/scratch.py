"""Temporary folders that do not outlive a killed process for long.

A process that is killed (`kill -9`, out of memory) leaves its `tempfile.TemporaryDirectory` behind. Here, each folder
has a file that its process locks. The kernel releases the lock when the process ends, and the next process of the
machine that needs a folder removes those that nobody locks.
"""

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipelines.core.errors import StorageError

LOCK = ".lock"


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Create an empty temporary folder, remove it in the end, and remove those of processes that were killed.

    Yields:
        The folder.

    Raises:
        StorageError: Somebody else owns the folder of these folders.
    """
    root = Path(tempfile.gettempdir()) / f"asymflow-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    status = root.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise StorageError(f"{root} is not a folder of this user; remove it, or set TMPDIR to another folder")
    with (root / LOCK).open("a") as turn:  # nobody looks at a folder that is not locked yet
        fcntl.flock(turn, fcntl.LOCK_EX)
        for left in root.iterdir():
            if left.is_dir() and not _is_in_use(left):
                shutil.rmtree(left, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(dir=root))
        lock = (folder / LOCK).open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
    with lock:
        files = folder / "files"
        files.mkdir()
        try:
            yield files
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _is_in_use(folder: Path) -> bool:
    """Return whether a process that is alive holds a folder's lock."""
    with suppress(FileNotFoundError), (folder / LOCK).open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
