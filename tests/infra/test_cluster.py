"""The acceptance of the whole on a cluster: data, basis, finetune and evaluation, each its own `ray job submit`, with a
bucket and a tracking server; the finetune is stopped once, and loses its head once. `make cluster-test` runs this, and
`make test` does not."""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy
from mlflow import MlflowClient
from mlflow_server import serve_manifest
from ports import wait_for
from postgres import Database, find_postgres, serve_postgres
from ray.job_submission import JobStatus
from ray_head import Head, ray_head

from pipelines.core import s3 as object_store
from pipelines.core import storage
from pipelines.core.artifacts import load_artifact
from pipelines.core.provenance import RAY_JOB
from pipelines.toy.data import write_img2dataset
from pipelines.train.metrics_log import METRICS_LOG, MetricsLog

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.cluster]
STEPS, EVERY = 100, 10
SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "planted-aws-4be1",
    "AWS_SESSION_TOKEN": "planted-aws-session-20d9",
    "HF_TOKEN": "planted-hub-77a0",
    "MLFLOW_TRACKING_PASSWORD": "planted-mlflow-c35e",
    "RAY_AUTH_TOKEN": "planted-ray-98f2-long-enough-to-be-one",
}
SERVER_SECRETS = {"PGPASSWORD": "planted-postgres-1d6b", "MLFLOW_FLASK_SERVER_SECRET_KEY": "planted-flask-e802"}


@dataclass
class Site:
    """Bucket, tracking server and what a head needs to know of them."""

    storage: str
    tracking: str
    environment: dict[str, str]
    database: str
    folder: Path


@pytest.fixture
def site(s3, s3_server, tmp_path, monkeypatch) -> Iterator[Site]:
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, SECRETS[name])
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    own = {"AWS_ENDPOINT_URL": s3_server.url, "AWS_ACCESS_KEY_ID": "test-key-id", "AWS_DEFAULT_REGION": "us-east-1"}
    own |= {name: value for name, value in SECRETS.items() if name.startswith("AWS_")}
    with ExitStack() as stack:
        if find_postgres():
            database = stack.enter_context(serve_postgres(SERVER_SECRETS["PGPASSWORD"]))
        else:
            database = Database(f"sqlite:///{tmp_path}/server.db", {})
        for name, value in database.environment.items():
            monkeypatch.setenv(name, value)
        server = {
            **own,
            "MLFLOW_ARTIFACTS_DESTINATION": storage.join(s3, "mlflow"),
            "MLFLOW_AUTH_ADMIN_PASSWORD": SECRETS["MLFLOW_TRACKING_PASSWORD"],
            "MLFLOW_FLASK_SERVER_SECRET_KEY": SERVER_SECRETS["MLFLOW_FLASK_SERVER_SECRET_KEY"],
        }
        tracking = stack.enter_context(serve_manifest(tmp_path, database, server))
        jobs = {**own, **SECRETS, "MLFLOW_TRACKING_URI": tracking, "MLFLOW_TRACKING_USERNAME": "admin"}
        jobs |= {"RAY_AUTH_MODE": "token", "RAY_JOB_STOP_WAIT_TIME_S": "120", "NO_PROXY": "127.0.0.1,localhost"}
        jobs["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"  # how late a training's end is noticed
        for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
            monkeypatch.setenv(name, jobs[name])
        yield Site(s3, tracking, jobs, database.uri, tmp_path)


class Jobs:
    """Jobs of one head after another, and everything that they said."""

    def __init__(self, site: Site):
        self.site, self.said = site, []

    def submit(self, head: Head, step: str, config: str, *settings: str) -> str:
        """The artifact that the job says it made, in its log's last line of its own."""
        done = head.submit(*self.command(step, config, *settings))
        self.said.append(done.stdout)
        assert done.returncode == 0, done.stdout[-6000:]
        (line,) = [line for line in done.stdout.splitlines() if line.startswith('{"artifact"')]
        return json.loads(line)["artifact"]

    def start(self, head: Head, name: str, command: list[str]) -> None:
        started = head.cli("submit", "--working-dir=.", "--no-wait", f"--submission-id={name}", "--", *command)
        assert started.returncode == 0, started.stdout

    def listen(self, head: Head) -> None:
        """What `ray job list` and the logs of Ray's own processes say."""
        self.said.append(head.cli("list").stdout)
        logs = [path for path in Path(head.temp).glob("session_2*/logs/**/*") if path.is_file()]
        self.said += [path.read_text(errors="replace") for path in logs]

    def command(self, step: str, config: str, *settings: str) -> list[str]:
        run = [f"run.storage={self.site.storage}/runs", "run.experiment=cluster"]
        return ["python", f"jobs/{step}.py", f"jobs/configs/{step}/{config}.yaml", *run, *settings]


def test_from_shards_to_scores_through_the_loss_of_the_head(site, make_images):
    write_img2dataset(iter(make_images(160)), site.folder / "crawl", 40)
    storage.put_folder(site.folder / "crawl", f"{site.storage}/crawl")
    jobs = Jobs(site)
    with ray_head(site.environment) as head:
        small = ("filters.min_side=32", "held_out_every=8")
        curated = jobs.submit(head, "curate", "demo", f"source={site.storage}/crawl", *small)
        encoded = jobs.submit(head, "encode", "demo", f"curated={curated}")
        basis = jobs.submit(head, "basis", "demo", f"curated={curated}", f"encoded={encoded}")
        settings = (
            f"curated={curated}", f"encoded={encoded}", f"basis={basis}", f"optim.steps={STEPS}", "optim.batch=4",
            "lora.rank=8", "loss.perceptual=null", f"checkpoints.every={EVERY}", "validation.pictures=2",
            "validation.every=30", "validation.steps=2", "resources.cpus_per_worker=1",
        )  # fmt: skip
        command = jobs.command("finetune", "toy_klein", *settings)
        runs = f"{site.storage}/runs/finetune"
        jobs.start(head, "first", command)
        wait_for_checkpoint(head, "first", runs, EVERY)
        assert head.cli("stop", "first").returncode == 0
        wait_for(lambda: head.jobs.get_job_status("first") == JobStatus.STOPPED)
        (stopped, folder) = newest_checkpoint(runs)
        jobs.said.append(head.jobs.get_job_logs("first"))
        assert f"stopped at step {stopped}, as requested; the checkpoint of step {stopped} is complete" in jobs.said[-1]
        jobs.start(head, "second", command)
        wait_for_checkpoint(head, "second", runs, stopped + 1)
        jobs.said.append(head.jobs.get_job_logs("second"))
        assert f"resuming from step {stopped}" in jobs.said[-1]
        jobs.listen(head)
        head.kill()
    stood, _ = newest_checkpoint(runs)
    assert stopped < stood < STEPS
    assert not storage.exists(f"{folder}/manifest.json")
    with ray_head(site.environment) as head:
        finetuned = jobs.submit(head, "finetune", "toy_klein", *settings)
        assert finetuned == folder
        assert f"resuming from step {stood}" in jobs.said[-1]
        sampling = ("prompts.count=4", "images_per_prompt=1", "sampling.steps=2", "models=[trained, lifted]")
        evaluated = jobs.submit(
            head, "evaluate", "toy", "adapter=", f"finetuned={finetuned}", f"curated={curated}",
            f"basis={basis}", *sampling,
        )  # fmt: skip
        jobs.listen(head)

    metrics_log = MetricsLog.from_json(storage.read_bytes(f"{finetuned}/{METRICS_LOG}").decode())
    assert metrics_log.steps == list(range(1, STEPS + 1))
    client = MlflowClient(site.tracking)
    experiment = client.get_experiment_by_name("cluster").experiment_id
    runs = {run.data.tags["step"]: run for run in client.search_runs([experiment])}
    assert set(runs) == {"curate", "encode", "basis", "finetune", "evaluate"}
    assert all(run.info.status == "FINISHED" and run.data.tags[RAY_JOB] for run in runs.values())
    history = client.get_metric_history(runs["finetune"].info.run_id, "train/loss")
    assert [metric.step for metric in history] == list(range(1, STEPS + 1))
    scores = load_artifact(evaluated, "evaluate").manifest["metrics"]
    shown = {name: value for name, value in runs["evaluate"].data.metrics.items() if name.count("/") == 3}
    assert scores
    assert shown == pytest.approx({f"eval/demo/{name}": value for name, value in scores.items()})
    assert runs["finetune"].data.tags[RAY_JOB].startswith("first, second, raysubmit_")
    assert chain(client, runs["evaluate"].data.tags["mlflow.note.content"]) == {"finetune", "encode", "basis", "curate"}
    assert_no_secret(site, jobs)


def newest_checkpoint(runs: str) -> tuple[int, str]:
    """(step, folder of the finetune); step 0 where there is none yet."""
    root = object_store.bucket_and_key(runs)["Key"] + "/"
    states = [key.removeprefix(root) for key in object_store.keys(runs) if key.endswith("/state.json")]
    steps = [int(state.split("/")[-2].split("-")[0]) for state in states]
    return max(steps, default=0), f"{runs}/{states[0].split('/')[0]}" if states else ""


def wait_for_checkpoint(head: Head, job: str, runs: str, step: int) -> None:
    """Of that step or a later one."""

    def stands() -> bool:
        assert head.jobs.get_job_status(job) in (JobStatus.PENDING, JobStatus.RUNNING), head.jobs.get_job_logs(job)[
            -6000:
        ]
        return newest_checkpoint(runs)[0] >= step

    wait_for(stands, seconds=300, every=0.3)


def chain(client: MlflowClient, page: str) -> set[str]:
    """The steps that links on a run's page lead to, from page to page."""
    steps: set[str] = set()
    for step, run_id in re.findall(r"\[(\w+) [0-9a-f]{6}\]\(#/experiments/\d+/runs/([0-9a-f]{32})\)", page):
        steps |= {step} | chain(client, client.get_run(run_id).data.tags["mlflow.note.content"])
    return steps


def assert_no_secret(site: Site, jobs: Jobs) -> None:
    """In what jobs and heads said, in the bucket, in the tracking server's database and in its log."""
    places = {"jobs": "\n".join(jobs.said).encode(), "server": (site.folder / "log").read_bytes()}
    bucket = object_store.bucket_and_key(site.storage)["Bucket"]
    for key in object_store.keys(f"s3://{bucket}"):  # also folder markers, whose keys end with a slash
        places[key] = object_store.client().get_object(Bucket=bucket, Key=key)["Body"].read()
    engine = sqlalchemy.create_engine(site.database)
    with engine.connect() as connection:
        for table in sqlalchemy.inspect(engine).get_table_names():
            rows = connection.execute(sqlalchemy.text(f'select * from "{table}"')).all()
            places[f"table {table}"] = repr(rows).encode()
    engine.dispose()
    assert len(places) > 50
    for secret in (*SECRETS.values(), *SERVER_SECRETS.values()):
        assert not [place for place, content in places.items() if secret.encode() in content]
