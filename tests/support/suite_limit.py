"""A limit for a whole run of the tests: one that hangs ends, with the stacks of its threads and the processes it left.

pytest-timeout limits each test; a run of which every test waits for the same thing that never comes would still take
hours, and what happens between and after tests has no limit at all.
"""

import faulthandler
import os
import sys
import threading

import psutil

HUNG = 3
"""Exit status"""


def start(minutes: float) -> threading.Timer:
    """Start the clock; `cancel()` ends it. To be called while pytest does not capture output."""
    timer = threading.Timer(60 * minutes, end, (minutes, os.dup(sys.__stderr__.fileno())))
    timer.daemon = True
    timer.start()
    return timer


def end(minutes: float, stderr: int) -> None:
    """Print where the process stands to the descriptor `stderr`, kill its descendants, and exit."""
    left = psutil.Process().children(recursive=True)

    def tell(line: str) -> None:
        os.write(stderr, f"{line}\n".encode())

    tell(f"\nerror: the tests did not end within {minutes:g} minutes (--suite-minutes); the stacks of all threads:")
    faulthandler.dump_traceback(file=stderr, all_threads=True)
    tell("processes that they started:")
    for process in left:
        try:
            tell(f"  {process.pid} {process.status()} {' '.join(process.cmdline())[:150]}")
            process.kill()
        except psutil.Error:
            continue
    os._exit(HUNG)
