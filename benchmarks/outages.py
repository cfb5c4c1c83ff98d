"""Cost of outages to a training: MLflow killed, MLflow hung, S3 unreachable, and a stop request (SIGTERM) during each.

    python benchmarks/outages.py [--seconds 60] [--batch 8] [--kinds "S3 down"]

A finetune of the toy model runs as a job, with a real MLflow server and moto's S3 server on loopback. Its inputs are
local, its checkpoints are in S3. For each kind of outage the job trains undisturbed, through a whole outage,
undisturbed again, and into a second outage during which it receives a stop request; after that outage the same
command resumes it.
For each window the script prints the number of optimizer steps that took more than 2 s longer than the median and the
seconds lost per minute; then how long the stop took, which checkpoint it named, and whether MLflow has every step at
the end.
"""

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/support"), str(ROOT / "benchmarks")]

import yaml  # noqa: E402
from gate import Gate  # noqa: E402
from mlflow import MlflowClient  # noqa: E402
from ports import answers, free_port, wait_for  # noqa: E402
from s3_faults import serve  # noqa: E402
from training_loop import make_inputs, settings_of  # noqa: E402

from pipelines.core import s3 as object_store  # noqa: E402
from pipelines.core.cli import main as run_job  # noqa: E402
from pipelines.core.text_table import format_table  # noqa: E402
from pipelines.train import driver  # noqa: E402
from pipelines.train.finetune.config import FinetuneSettings  # noqa: E402
from pipelines.train.finetune.step import STEP  # noqa: E402
from pipelines.train.task import MakeTask  # noqa: E402

BAR = 2.0
STOP_MINUTES = 0.5
TIMES = "ASYMFLOW_STEP_TIMES"


def timed_loop(task: MakeTask, config: dict[str, Any]) -> dict[str, Any]:
    """Run the finetune's loop and write the start time of each step to a local file."""
    from pipelines.train import loop

    class Timed(loop.Training):
        def train_step(self, batches):
            with open(os.environ[TIMES], "a") as file:
                file.write(f"{time.time()}\n")
            return super().train_step(batches)

    loop.Training = Timed
    return loop.train_loop(task, config)


class Mlflow:
    """An MLflow server that can be killed, restarted on the same store, and paused by SIGSTOP."""

    def __init__(self, folder: Path):
        self.port = free_port()
        self.url, self.log = f"http://127.0.0.1:{self.port}", folder / "mlflow.log"
        stores = [f"--backend-store-uri=sqlite:///{folder}/mlflow.db", f"--artifacts-destination={folder}/kept"]
        self.command = [sys.executable, "-m", "mlflow", "server", *stores, "--host=127.0.0.1", "--workers=1"]
        self.start()

    def start(self) -> None:
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [*self.command, f"--port={self.port}"], stdout=log, stderr=log, start_new_session=True
            )
        wait_for(lambda: answers(f"{self.url}/health"), seconds=300)

    def signal(self, number: int) -> None:
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.process.wait()


class Outage(NamedTuple):
    name: str
    begin: Callable[[], None]
    end: Callable[[], None]


def step_times(file: Path) -> list[float]:
    return [float(line) for line in file.read_text().splitlines()] if file.exists() else []


def measure(times: list[float], begin: float, end: float, usual: float) -> list[str]:
    """Return the number of steps of a window, the number of delayed ones, and the seconds lost per minute."""
    pairs = [(a, b - a) for a, b in zip(times, times[1:], strict=False) if begin <= a <= end]
    late = [seconds - usual for _, seconds in pairs if seconds - usual > BAR]
    longest = max((seconds for _, seconds in pairs), default=float("nan"))
    return [str(len(pairs)), str(len(late)), f"{60 * sum(late) / (end - begin):.1f}", f"{longest:.2f}"]


def train_through(outage: Outage, config: Path, folder: Path, seconds: float, url: str) -> list[list[str]]:
    """Return the rows of the table for one kind of outage."""
    times, log = folder / "times", folder / "log"

    def start() -> subprocess.Popen:
        environment = {**os.environ, TIMES: str(times)}
        with log.open("a") as file:
            command = [sys.executable, __file__, "--job", str(config)]
            return subprocess.Popen(command, env=environment, stdout=file, stderr=file, start_new_session=True)

    def wait_for_steps(job: subprocess.Popen, count: int) -> None:
        while len(step_times(times)) < count:
            assert job.poll() is None, log.read_text()[-3000:]
            time.sleep(0.2)

    job = start()
    try:
        wait_for_steps(job, 40)
        windows, rows = {}, []
        for name, act in (("undisturbed", False), ("outage", True), ("undisturbed again", False)):
            begin = time.time()
            if act:
                outage.begin()
            time.sleep(seconds if act else seconds / 2)
            windows[name] = begin, time.time()
            if act:
                outage.end()
                time.sleep(5)
        outage.begin()
        time.sleep(10)
        requested = time.monotonic()
        job.send_signal(signal.SIGTERM)
        status = job.wait(60 * STOP_MINUTES + 120)
        took = time.monotonic() - requested
        outage.end()
        seen = step_times(times)
        usual = statistics.median(b - a for a, b in zip(seen[10:], seen[11:], strict=False))
        for name, (begin, end) in windows.items():
            rows.append([outage.name, name, *measure(seen, begin, end, usual), ""])
        message = [line for line in log.read_text().splitlines() if line.startswith("error: ")][-1]
        stopped, good = re.search(r"stopped at step (\d+)", message), re.search(r"of step (\d+)(?!.*of step)", message)
        assert stopped, message
        assert good, message
        rows.append([outage.name, f"SIGTERM: exit {status} after {took:.0f} s", "", "", "", "",
                     f"stopped at {stopped[1]}, good {good[1]}"])  # fmt: skip
        before = len(seen)
        job = start()
        wait_for_steps(job, before + 20)
        job.send_signal(signal.SIGTERM)
        job.wait(240)
        client = MlflowClient(url)
        (run,) = client.search_runs([e.experiment_id for e in client.search_experiments()], max_results=1)
        points = {m.step for m in client.get_metric_history(run.info.run_id, "train/loss")}
        last = int(re.findall(r"stopped at step (\d+)", log.read_text())[-1])
        missing = set(range(1, last + 1)) - points
        rows.append([outage.name, "resumed", "", "", "", "", f"{len(missing)} of {last} points missing in MLflow"])
        return rows
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)


@contextmanager
def store() -> Iterator[Gate]:
    """moto's S3 behind a gate, with the bucket `bucket`, in the environment of the jobs."""
    with serve() as server:
        gate = Gate(int(server.url.rpartition(":")[2]))
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            del os.environ[name]
        os.environ |= {
            "AWS_ENDPOINT_URL": gate.url, "AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1", "NO_PROXY": "127.0.0.1",
        }  # fmt: skip
        object_store.client().create_bucket(Bucket="bucket")
        yield gate
        gate.close()


def compare(seconds: float, batch: int, kinds: list[str]) -> None:
    with TemporaryDirectory() as scratch, store() as gate:
        folder = Path(scratch)
        command = [sys.executable, __file__, "--inputs", scratch]
        made = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        mlflow = Mlflow(folder)
        outages = [
            Outage("MLflow killed", mlflow.kill, mlflow.start),
            Outage("MLflow hung", lambda: mlflow.signal(signal.SIGSTOP), lambda: mlflow.signal(signal.SIGCONT)),
            Outage("S3 down", gate.close, gate.open),
        ]
        rows = []
        try:
            for i, outage in enumerate(o for o in outages if not kinds or o.name in kinds):
                own = folder / str(i)
                own.mkdir()
                settings = settings_of(made, own, batch, 100_000, zero_stage=0, every=20).model_dump(mode="json")
                settings["run"] |= {
                    "storage": f"s3://bucket/{i}", "tracking_uri": mlflow.url, "experiment": f"outage {i}"
                }  # fmt: skip
                settings["watch"]["stop_minutes"] = STOP_MINUTES
                settings["resources"]["cpus_per_worker"] = 1
                settings["seed"] = i
                config = own / "config.yaml"
                config.write_text(yaml.safe_dump(settings))
                print(f"{outage.name}: load of the machine {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
                found = train_through(outage, config, own, seconds, mlflow.url)
                print(format_table(found), file=sys.stderr, flush=True)
                rows += found
        finally:
            mlflow.signal(signal.SIGCONT)
            mlflow.kill()
        head = ["outage", "window", "steps", f"late > {BAR:g} s", "s lost / min", "longest step, s", ""]
        print(f"batch {batch}, outages of {seconds:g} s, a checkpoint every 20 steps; bar: 0 late steps")
        print(format_table([head, *rows]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="of an outage")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--kinds", nargs="*", default=[], help="of these only: 'MLflow killed' 'MLflow hung' 'S3 down'")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--inputs", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.job:
        driver.train_function = lambda task: lambda config: timed_loop(task, config)
        run_job(FinetuneSettings, lambda: STEP, "", arguments=[args.job])
    elif args.inputs:
        print(json.dumps(make_inputs(Path(args.inputs))))
    else:
        compare(args.seconds, args.batch, args.kinds)


if __name__ == "__main__":
    main()
