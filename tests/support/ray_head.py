"""A real Ray head on loopback, as `ray start --head` makes one, and its job server."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from ports import answers, free_port, wait_for
from ray.job_submission import JobSubmissionClient

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]


class Head:
    """`environment` is the head's own, which drivers and workers inherit; `url` the job server's address."""

    def __init__(self, environment: Mapping[str, str], folder: Path = ROOT):
        # short: sockets lie in it, whose paths may have a hundred characters
        self.temp = tempfile.mkdtemp(prefix="ray", dir="/tmp")
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "AWS_", "MLFLOW_"))}
        self.environment |= {"PATH": f"{BIN}:{os.environ['PATH']}", "RAY_USAGE_STATS_ENABLED": "0", **environment}
        command = [BIN / "ray", "start", "--head", "--block", "--num-cpus=2", "--object-store-memory=300000000"]
        command += [f"--temp-dir={self.temp}", "--dashboard-host=127.0.0.1", f"--dashboard-port={self.port}"]
        for name in ("port", "ray-client-server-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port"):
            command.append(f"--{name}={free_port()}")
        self.log = Path(self.temp) / "head.log"
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(command, env=self.environment, cwd=folder, stdout=log, stderr=log)
        wait_for(self.is_up)

    def is_up(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        return answers(f"{self.url}/api/version")

    def kill(self) -> None:
        """At once and with all that it started, as a machine that is lost."""
        running = psutil.process_iter(["pid", "cmdline"])
        found = [p.info["pid"] for p in running if any(self.temp in part for part in p.info["cmdline"] or [])]
        family = {process for pid in (self.process.pid, *found) for process in _with_children(pid)}
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(list(family), timeout=20)
        self.process.wait(20)

    @property
    def jobs(self) -> JobSubmissionClient:
        """The job server's REST interface: a `ray job status` takes a second of a processor."""
        token = self.environment.get("RAY_AUTH_TOKEN")
        return JobSubmissionClient(self.url, headers={"Authorization": f"Bearer {token}"} if token else None)

    def cli(self, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """`ray job ARGUMENTS`, its output in `stdout`, as a person's terminal shows it."""
        command = [str(BIN / "ray"), "job", *arguments]
        environment = {**self.environment, "RAY_API_SERVER_ADDRESS": self.url, "NO_COLOR": "1"}
        return subprocess.run(
            command, cwd=ROOT, env=environment, timeout=timeout, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )  # fmt: skip

    def submit(
        self, *entrypoint: str, options: Sequence[str] = (), timeout: float = 300
    ) -> subprocess.CompletedProcess[str]:
        """`ray job submit --working-dir . -- ENTRYPOINT`, to its end."""
        return self.cli("submit", "--working-dir=.", *options, "--", *entrypoint, timeout=timeout)


def _with_children(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


@contextmanager
def ray_head(environment: Mapping[str, str], folder: Path = ROOT) -> Iterator[Head]:
    head = Head(environment, folder)
    try:
        yield head
    finally:
        head.kill()
        shutil.rmtree(head.temp, ignore_errors=True)
