"""Before a node is taken away: tell Ray, and give what trains on it time for a checkpoint.

    python -m pipelines.core.leave_cluster SECONDS

For the `preStop` hook of pods. Nothing new is started on the node. A training hears of it as of a preemption: it writes
a checkpoint at once, and goes on until the node is gone; its workers then start again elsewhere. Returns after so many
seconds, or as soon as nothing trains here.
"""

import os
import subprocess
import sys
import time

import psutil

POLL_SECONDS = 2.0


def leave(seconds: int, node_id: str = "") -> bool:
    """Whether the node came to rest in time. `node_id` is this machine's unless given.

    Raises:
        subprocess.CalledProcessError: Ray refused, with its reason on stderr.
        subprocess.TimeoutExpired: Ray did not answer in time.
    """
    deadline = time.monotonic() + seconds
    drain = ["ray", "drain-node", "--address", os.environ.get("RAY_ADDRESS", "auto")]
    drain += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "the node is about to be taken away"]
    drain += ["--deadline-remaining-seconds", str(seconds), *(["--node-id", node_id] if node_id else [])]
    subprocess.run(drain, check=True, timeout=seconds)
    while workers := busy_workers():
        if time.monotonic() > deadline:
            print(f"still at work: {', '.join(workers)}", file=sys.stderr)
            return False
        time.sleep(POLL_SECONDS)
    return True


def busy_workers() -> list[str]:
    """What Ray's workers on this machine call themselves while they train."""
    titles = (" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"]))
    return sorted(title for title in titles if title.startswith("ray::") and "TrainWorker" in title)


if __name__ == "__main__":
    sys.exit(0 if leave(int(sys.argv[1])) else 1)
