"""Interrupted runs resume from their last checkpoint and give the result of an uninterrupted run.

The number of workers and the ZeRO stage may change.
"""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import training_runs
import yaml
from gate import gate_before
from mlflow import MlflowClient
from ray import cloudpickle
from training_runs import STEPS, Training, failing_at, key_sum, read_metrics_log_of

from pipelines.core import s3 as object_store
from pipelines.core import storage
from pipelines.core.artifacts import load_artifact
from pipelines.core.step import StepFailed, run_step
from pipelines.core.tracking import tracking_uri
from pipelines.train import driver
from pipelines.train.checkpoint import folder_of, list_checkpoints
from pipelines.train.history import read_metrics_log

pytestmark = [pytest.mark.ray, pytest.mark.slow]
# The engine is the same for both kinds: most tests use one, end-to-end tests use both.
both = pytest.mark.parametrize("training", ["finetune", "pretrain"], indirect=True)
finetune = pytest.mark.parametrize("training", ["finetune"], indirect=True)
pretrain = pytest.mark.parametrize("training", ["pretrain"], indirect=True)
ROOT = Path(__file__).parents[3]
cloudpickle.register_pickle_by_value(training_runs)  # workers cannot import the tests' modules


def assert_the_same(artifact, plain, training) -> None:
    """Check that losses and images are the same, and that the first epoch holds each image once."""
    metrics_log, undisturbed = read_metrics_log_of(artifact), read_metrics_log_of(plain)
    assert metrics_log.curves["loss"] == pytest.approx(undisturbed.curves["loss"], rel=1e-4)
    assert metrics_log.key_sums == undisturbed.key_sums
    curated = training.curated
    epoch = -(-int(curated.manifest["metrics"]["kept_train"]) // training_runs.BATCH)
    assert epoch < STEPS
    assert sum(metrics_log.key_sums[:epoch]) == key_sum(curated)


def fail_at(monkeypatch, tmp_path, step: int, rank: int, fail) -> None:
    changed = failing_at(step, rank, tmp_path / "failed", fail)
    monkeypatch.setattr(driver, "train_function", changed)


def checkpoint_steps(training: Training, storage_folder: Path) -> list[int]:
    return [c.step for c in list_checkpoints(folder_of(str(training.folder(storage_folder))))]


def with_watch(settings, **changes):
    return settings.model_copy(update={"watch": settings.watch.model_copy(update=changes)})


def with_checkpoints_every(settings, steps: int):
    return settings.model_copy(update={"checkpoints": settings.checkpoints.model_copy(update={"every": steps})})


@both
def test_a_worker_that_is_killed_is_started_again(training, tmp_path, plain, monkeypatch):
    fail_at(monkeypatch, tmp_path, 13, 1, training_runs.kill)
    artifact = run_step(training.step, training.settings_for(tmp_path, workers=2)).artifact
    assert (tmp_path / "failed").exists()
    assert_the_same(artifact, plain, training)
    assert checkpoint_steps(training, tmp_path) == [15, 20]  # the last two of 5, 10, 15 and 20


@pretrain
def test_a_terminated_worker_writes_a_checkpoint(training, tmp_path, plain, monkeypatch):
    fail_at(monkeypatch, tmp_path, 18, 0, training_runs.terminate)
    artifact = run_step(training.step, training.settings_for(tmp_path, zero_stage=1)).artifact
    assert checkpoint_steps(training, tmp_path) == [18, 20]
    assert_the_same(artifact, plain, training)


@finetune
def test_an_error_in_one_rank_and_the_rest_on_one_worker_without_zero(training, tmp_path, plain, monkeypatch):
    fail_at(monkeypatch, tmp_path, 12, 1, training_runs.give_an_error)
    with pytest.raises(StepFailed, match="one rank failed"):
        run_step(training.step, training.settings_for(tmp_path, workers=2, zero_stage=3, max_failures=0))
    assert checkpoint_steps(training, tmp_path) == [5, 10]
    artifact = run_step(training.step, training.settings_for(tmp_path, workers=1, zero_stage=0)).artifact
    assert_the_same(artifact, plain, training)


@pretrain
def test_a_rank_that_hangs_ends_the_workers_with_their_stacks(training, tmp_path, plain, monkeypatch, capfd):
    fail_at(monkeypatch, tmp_path, 12, 1, training_runs.hang)
    settings = with_watch(training.settings_for(tmp_path, workers=2), hang_minutes=1 / 3)
    artifact = run_step(training.step, settings).artifact
    assert_the_same(artifact, plain, training)
    told = "".join(capfd.readouterr())
    assert "Timeout (0:00:20)!" in told
    assert "in hang" in told
    assert "in train_step" in told


@pretrain
def test_a_preemption_notice_writes_one_checkpoint(training, tmp_path, plain, monkeypatch, capfd):
    fail_at(monkeypatch, tmp_path, 12, 0, training_runs.be_preempted)
    settings = with_checkpoints_every(training.settings_for(tmp_path, zero_stage=0), 100)
    artifact = run_step(training.step, settings).artifact
    assert checkpoint_steps(training, tmp_path) == [12, 20]
    assert_the_same(artifact, plain, training)
    assert "".join(capfd.readouterr()).count("nodes a-node are about to be preempted") == 1


@finetune
def test_steps_without_a_finite_loss_are_skipped_and_too_many_end_the_run(
    training, tmp_path, plain, monkeypatch, capfd
):
    """One rank of two has such steps; the other skips with it, and other steps equal those of the undisturbed run."""
    poisoned = training_runs.poisoned_at({7, 13, 14, 15}, rank=1)
    monkeypatch.setattr(driver, "train_function", poisoned)
    settings = with_watch(training.settings_for(tmp_path, workers=2), skips=3)
    with pytest.raises(StepFailed, match="stopped at step 15: 3 steps in a row had no finite loss"):
        run_step(training.step, settings)
    newest = list_checkpoints(folder_of(str(training.folder(tmp_path))))[-1]
    metrics_log = read_metrics_log(str(training.folder(tmp_path)), newest.state)
    assert newest.step == 10
    assert metrics_log.skipped == [7]
    assert metrics_log.curves["loss"][:6] == pytest.approx(read_metrics_log_of(plain).curves["loss"][:6], rel=1e-4)
    assert all(math.isfinite(loss) == (step != 7) for step, loss in enumerate(metrics_log.curves["loss"], 1))
    told = "".join(capfd.readouterr())
    assert told.count("step 7 skipped: its loss or gradient is not finite; its images: ") == 1
    assert "repeated" not in told  # by Ray's deduplication of several ranks
    keys = metrics_log.skipped_keys["7"]
    assert len(keys) == training_runs.BATCH
    assert f"its images: {', '.join(keys)}" in told
    run = json.loads((training.folder(tmp_path) / ".run.json").read_text())["mlflow_run"]
    client = MlflowClient(tracking_uri(settings.run))
    assert [m.step for m in client.get_metric_history(run, "train/skipped")] == [7, 13, 14, 15]
    files = [file.path for file in client.list_artifacts(run, "skipped")]
    assert files == [f"skipped/step-{step:08}.txt" for step in (7, 13, 14, 15)]
    assert (Path(client.download_artifacts(run, files[0], str(tmp_path)))).read_text().split("\n")[:-1] == keys


@pretrain
def test_an_older_attempt_stops_and_writes_no_more(training, tmp_path, monkeypatch):
    fail_at(monkeypatch, tmp_path, 12, 0, training_runs.be_overtaken)
    with pytest.raises(StepFailed, match="stopped at step 12: a newer attempt"):
        run_step(training.step, training.settings_for(tmp_path))
    assert checkpoint_steps(training, tmp_path) == [5, 10]


def start_job(training: Training, settings, tmp_path) -> subprocess.Popen:
    config = tmp_path / "settings.yaml"
    config.write_text(yaml.safe_dump(json.loads(settings.model_dump_json())))
    environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "AWS_MAX_ATTEMPTS")}
    with open(tmp_path / "log", "w") as log:
        return subprocess.Popen(
            [sys.executable, str(ROOT / training.job), str(config)],
            cwd=ROOT, env=environment, start_new_session=True, stdout=log, stderr=log,
        )  # fmt: skip


def wait_for(job: subprocess.Popen, tmp_path: Path, condition) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        ended, late = job.poll() is not None, time.monotonic() > deadline
        assert not ended, (tmp_path / "log").read_text()[-3000:]
        assert not late, (tmp_path / "log").read_text()[-3000:]
        time.sleep(0.05)


def is_checkpoint(tmp_path):
    return lambda: list((tmp_path / "runs").glob("*/*/.train/checkpoints/*/state.json"))


@both
def test_a_driver_that_is_killed_and_the_rest_on_two_workers_with_other_zero(training, tmp_path, plain):
    """kill -9 of the whole process group after a checkpoint."""
    job = start_job(training, training.settings_for(tmp_path / "runs", zero_stage=2), tmp_path)
    wait_for(job, tmp_path, is_checkpoint(tmp_path))
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    assert not list((tmp_path / "runs").glob(f"{training.step.name}/*/manifest.json"))
    artifact = run_step(training.step, training.settings_for(tmp_path / "runs", workers=2, zero_stage=1)).artifact
    assert_the_same(artifact, plain, training)


@finetune
def test_a_stopped_driver_writes_and_reports_a_checkpoint(training, tmp_path, plain):
    """SIGTERM, as `ray job stop` sends it; resumed on one worker at another ZeRO stage.

    A third run finds the artifact.
    """
    settings = training.settings_for(tmp_path / "runs", without_validation=False, workers=2, zero_stage=0)
    drawing = settings.validation.model_copy(update={"every": 1, "steps": 20})  # else it may be done before it hears
    settings = with_checkpoints_every(settings, 1).model_copy(update={"validation": drawing})
    job = start_job(training, settings, tmp_path)
    wait_for(job, tmp_path, is_checkpoint(tmp_path))
    job.send_signal(signal.SIGTERM)
    assert job.wait(120) == 1
    told = (tmp_path / "log").read_text()
    steps = checkpoint_steps(training, tmp_path / "runs")
    last = steps[-1]
    assert last < STEPS
    assert f"error: finetune: stopped at step {last}, as requested; the checkpoint of step {last} is complete" in told
    assert told.count("finetune: step 0 of ") == 1, "a worker's lines are forwarded once"

    again = training.settings_for(tmp_path / "runs", workers=1, zero_stage=2)
    artifact = run_step(training.step, again).artifact
    assert_the_same(artifact, plain, training)
    done = start_job(training, again, tmp_path)
    assert done.wait(120) == 0
    assert f"up to date, nothing to do: {artifact.uri}" in (tmp_path / "log").read_text()


@finetune
def test_a_store_that_refuses_writes_for_a_while(faulty_s3, training, tmp_path, plain):
    """Checkpoints are lost, but no step. Killed later, the run resumes from the checkpoint that was written."""
    uri, server = faulty_s3
    refused = server.deny("PUT .*checkpoints/000000(05|10)")
    settings = training.settings_for("unused", zero_stage=0)
    run = {"storage": f"{uri}/runs", "tracking_uri": f"sqlite:///{tmp_path}/mlflow.db"}
    settings = settings.model_copy(update={"run": settings.run.model_copy(update=run)})
    job = start_job(training, settings, tmp_path)
    wait_for(job, tmp_path, lambda: server.count("PUT .*checkpoints/00000015.*state.json"))
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    assert refused.struck >= 2
    server.clear()
    job = start_job(training, settings, tmp_path)
    assert job.wait(240) == 0, (tmp_path / "log").read_text()[-3000:]
    told = (tmp_path / "log").read_text()
    assert "test-secret-key" not in told
    assert "\r" not in told  # no bars in a file, and nothing after the result
    artifact = load_artifact(json.loads(told.splitlines()[-1])["artifact"], "finetune")
    assert_the_same(artifact, plain, training)
    assert storage.exists(artifact.file("adapter", "config.json"))


@finetune
def test_a_stop_during_an_outage_ends_in_time(s3, s3_server, training, tmp_path, monkeypatch):
    """SIGTERM without S3: the workers stop all the same, and the message names a checkpoint that is complete."""
    with gate_before(int(s3_server.url.rpartition(":")[2])) as gate:
        monkeypatch.setenv("AWS_ENDPOINT_URL", gate.url)
        settings = training.settings_for("unused", zero_stage=0, without_validation=False)
        run = {"storage": f"{s3}/runs", "tracking_uri": f"sqlite:///{tmp_path}/mlflow.db"}
        drawing = settings.validation.model_copy(update={"every": 1, "steps": 20})  # else it may be done before
        settings = settings.model_copy(update={"run": settings.run.model_copy(update=run), "validation": drawing})
        settings = with_watch(with_checkpoints_every(settings, 1), stop_minutes=0.5)
        job = start_job(training, settings, tmp_path)
        wait_for(job, tmp_path, lambda: s3_server.count("PUT .*state.json") >= 2)
        gate.close()
        time.sleep(2)  # some steps
        job.send_signal(signal.SIGTERM)
        started = time.monotonic()
        assert job.wait(120) == 1
        assert time.monotonic() - started < 75
        gate.open()
        keys = [key for key in object_store.keys(f"{s3}/runs/finetune") if "/.train/" in key]
        (name,) = {key.partition("/finetune/")[2].partition("/")[0] for key in keys}
        good = list_checkpoints(folder_of(f"{s3}/runs/finetune/{name}"))[-1].step
    (end,) = re.findall(
        r"^error: finetune: stopped at step (\d+), as requested; (.*)$", (tmp_path / "log").read_text(), re.MULTILINE
    )
    assert int(end[0]) > good
    assert "no checkpoint of this step is complete (" in end[1]
    assert end[1].endswith(f"the last complete one is of step {good}; the same command resumes from it")
