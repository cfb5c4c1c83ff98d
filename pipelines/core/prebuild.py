"""Compile DeepSpeed's CPU communication extension ahead of the first training.

    python -m pipelines.core.prebuild

DeepSpeed compiles this extension when it starts with gloo. A build holds a file `lock` in its folder. A lock left by a
killed build would make every later start wait forever without a message, so stale locks are removed first.
"""

import math
import os
import sysconfig
import time
from pathlib import Path

PROCESSES = Path("/proc")
BUILD_SECONDS = 300
"""Upper bound of a build's time, which is about a minute"""


def main() -> None:
    """Build the extension if it is missing; a no-op with CUDA (training uses NCCL) or on unsupported CPUs."""
    import torch

    if torch.cuda.is_available():
        return
    put_ninja_on_path()
    for lock in remove_stale_locks(extensions_folder()):
        print(f"removed {lock}, left by a build that was killed")
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    builder = ShareMemCommBuilder()
    if not builder.is_compatible():
        return
    print(f"building {builder.NAME} if it is missing (about a minute)", flush=True)
    started = time.monotonic()
    builder.load(verbose=False)
    print(f"{builder.NAME} is ready after {time.monotonic() - started:.0f} s")


def extensions_folder() -> Path:
    """Return the folder of torch's compiled extensions, of all Python versions and accelerators."""
    from torch.utils.cpp_extension import get_default_build_root

    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())


def remove_stale_locks(folder: Path, older_than: float = 0) -> list[Path]:
    """Remove the locks of DeepSpeed extensions that no build on this machine holds.

    Args:
        folder: Folder to search recursively.
        older_than: Minimum age in seconds of the locks to remove.

    Returns:
        The removed locks.
    """
    stale = [lock for lock in sorted(folder.glob("**/deepspeed_*/lock")) if not _is_held(lock)]
    stale = [lock for lock in stale if _age(lock) >= older_than]
    for lock in stale:
        lock.unlink(missing_ok=True)
    return stale


def _is_held(lock: Path) -> bool:
    """Return whether a process has the lock open. Without /proc, treat a lock younger than BUILD_SECONDS as held."""
    if not (PROCESSES / "self/fd").is_dir():
        return _age(lock) < BUILD_SECONDS
    target = str(lock.resolve())
    for descriptor in PROCESSES.glob("[0-9]*/fd/*"):
        try:
            if os.readlink(descriptor) == target:
                return True
        except OSError:  # the process ended or belongs to another user
            continue
    return False


def _age(lock: Path) -> float:
    try:
        return time.time() - lock.stat().st_mtime
    except FileNotFoundError:  # released in the meantime
        return math.inf


def put_ninja_on_path() -> None:
    """Add this Python's scripts to PATH: torch calls `ninja` by name, and the environment may not be activated."""
    scripts = sysconfig.get_path("scripts")
    if scripts not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([scripts, os.environ.get("PATH", "")])


if __name__ == "__main__":
    main()
