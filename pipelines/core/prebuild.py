"""One-off builds: DeepSpeed's CPU communication, compiled before the first training would stop to do it.

    python -m pipelines.core.prebuild

DeepSpeed compiles this extension wherever it starts with gloo. Compilers mark their folder with a file `lock`; one
that was left by a killed build makes every later start wait for ever, silently, so such a file is removed first.
"""

import math
import os
import sysconfig
import time
from pathlib import Path

PROCESSES = Path("/proc")
BUILD_SECONDS = 300
"""More than a build ever takes: about a minute"""


def main() -> None:
    """Build what is missing; a no-op where there is CUDA (training goes through NCCL) or no such extension."""
    import torch

    if torch.cuda.is_available():
        return
    put_ninja_on_path()
    for lock in remove_stale_locks(extensions_folder()):
        print(f"removed {lock}: a build that was killed had left it")
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    builder = ShareMemCommBuilder()
    if not builder.is_compatible():
        return
    print(f"building {builder.NAME} unless it stands (about a minute)", flush=True)
    started = time.monotonic()
    builder.load(verbose=False)
    print(f"{builder.NAME} stands after {time.monotonic() - started:.0f} s")


def extensions_folder() -> Path:
    """Where torch keeps compiled extensions, over all versions of Python and accelerators."""
    from torch.utils.cpp_extension import get_default_build_root

    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())


def remove_stale_locks(folder: Path, older_than: float = 0) -> list[Path]:
    """Remove and return the locks of DeepSpeed's extensions below a folder that no build on this machine holds, and
    that are so many seconds old."""
    stale = [lock for lock in sorted(folder.glob("**/deepspeed_*/lock")) if not _is_held(lock)]
    stale = [lock for lock in stale if _age(lock) >= older_than]
    for lock in stale:
        lock.unlink(missing_ok=True)
    return stale


def _is_held(lock: Path) -> bool:
    """A build keeps its lock open; where open files cannot be listed, a young lock counts as held."""
    if not (PROCESSES / "self/fd").is_dir():
        return _age(lock) < BUILD_SECONDS
    target = str(lock.resolve())
    for descriptor in PROCESSES.glob("[0-9]*/fd/*"):
        try:
            if os.readlink(descriptor) == target:
                return True
        except OSError:  # the process ended, or is another user's
            continue
    return False


def _age(lock: Path) -> float:
    try:
        return time.time() - lock.stat().st_mtime
    except FileNotFoundError:  # released meanwhile
        return math.inf


def put_ninja_on_path() -> None:
    """torch calls `ninja` by name; it lies beside this Python, which may not be the activated one."""
    scripts = sysconfig.get_path("scripts")
    if scripts not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([scripts, os.environ.get("PATH", "")])


if __name__ == "__main__":
    main()
