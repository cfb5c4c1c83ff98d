"""Drain a Ray node before it is removed, and wait for the trainings on it to write a checkpoint.

    python -m pipelines.core.leave_cluster SECONDS

For the `preStop` hook of pods. Ray starts nothing new on the node. A training is notified of a preemption: it writes a
checkpoint immediately and continues until the node is gone; its workers then restart on other nodes. The command
returns after SECONDS, or as soon as no training runs on this machine.
"""

import os
import subprocess
import sys
import time

import psutil

POLL_SECONDS = 2.0


def leave(seconds: int, node_id: str = "") -> bool:
    """Drain a node and wait until no training runs on this machine.

    Args:
        seconds: Time limit, which Ray gets as the deadline of the node too.
        node_id: Ray's ID of the node; by default that of this machine.

    Returns:
        Whether all trainings ended in time.

    Raises:
        subprocess.CalledProcessError: Ray refused; its reason is on stderr.
        subprocess.TimeoutExpired: Ray did not respond in time.
    """
    deadline = time.monotonic() + seconds
    drain = ["ray", "drain-node", "--address", os.environ.get("RAY_ADDRESS", "auto")]
    drain += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "the node is about to be taken away"]
    drain += ["--deadline-remaining-seconds", str(seconds), *(["--node-id", node_id] if node_id else [])]
    subprocess.run(drain, check=True, timeout=seconds)
    while workers := busy_workers():
        if time.monotonic() > deadline:
            print(f"still training: {', '.join(workers)}", file=sys.stderr)
            return False
        time.sleep(POLL_SECONDS)
    return True


def busy_workers() -> list[str]:
    """Return the process titles of the Ray workers that train on this machine."""
    titles = (" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"]))
    return sorted(title for title in titles if title.startswith("ray::") and "TrainWorker" in title)


if __name__ == "__main__":
    sys.exit(0 if leave(int(sys.argv[1])) else 1)
