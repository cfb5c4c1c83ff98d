"""The training loop through outages, in this process: real model, DeepSpeed, S3 and MLflow, but no Ray."""

import json
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from gate import gate_before
from mlflow import MlflowClient

from asymflow.models.jit import LAYOUT
from asymflow.srgb import SrgbSpace
from asymflow.subspace import Subspace
from pipelines.core import storage
from pipelines.core.config import RunSettings, validate
from pipelines.core.tracking import open_run
from pipelines.train import loop
from pipelines.train.checkpoint import folder_of, list_checkpoints
from pipelines.train.history import history_folder, read_metrics_log
from pipelines.train.metrics_log import METRICS_LOG, MetricsLog
from pipelines.train.pretrain.batches import Batch
from pipelines.train.pretrain.config import PretrainSettings
from pipelines.train.pretrain.model import build_model
from pipelines.train.pretrain.task import PretrainTask, make_objective
from pipelines.train.run_lease import RunLease
from pipelines.train.tracking_log import unsent_file
from pipelines.train.tracking_sender import TrackingSender

pytestmark = pytest.mark.usefixtures("alone")
STEPS, BATCH, SIDE = 12, 4, 32


class Batches:
    """The samples of a step, a function of its number."""

    waited = 0.0
    order = SimpleNamespace(steps_per_epoch=lambda batch: 5)

    def __init__(self, poisoned=(), pause=0.0):
        self.poisoned, self.pause, self.times = poisoned, pause, []

    def from_step(self, step, micro_batch, pinned):
        while True:
            step += 1
            self.times.append(time.monotonic())
            time.sleep(self.pause)
            yield [self.batch(step)]

    def batch(self, step):
        g = torch.Generator().manual_seed(step)
        images = torch.rand(BATCH, 3, SIDE, SIDE, generator=g) * 2 - 1
        return Batch(
            images=images * float("nan") if step in self.poisoned else images,
            noise=torch.randn(BATCH, 3, SIDE, SIDE, generator=g),
            sigma=torch.rand(BATCH, generator=g) * 0.8 + 0.1,
            weight=torch.ones(BATCH),
            keys=[f"shard/{step}-{i}" for i in range(BATCH)],
            key_sums=torch.full((BATCH,), float(step)).double(),
            labels=torch.zeros(BATCH).long(),
            patch_size=16,
        )


class Signals:
    """Ray's key-value store between driver and workers, in this process."""

    def __init__(self, attempt=""):
        self.asked, self.told = threading.Event(), []

    def is_stop_requested(self):
        return self.asked.is_set()

    def report(self, **progress):
        self.told.append(progress)


@pytest.fixture
def train(tmp_path, monkeypatch, mlflow_store):
    """Return a function of a folder that trains in it as one attempt, and returns the loop's result and its files."""
    context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
    monkeypatch.setattr(loop.ray.train, "get_context", lambda: context)
    monkeypatch.setattr(loop.ray.train, "get_preemption_info", lambda: None)
    monkeypatch.setattr("pipelines.train.run_lease._POLL_SECONDS", 0.1)
    monkeypatch.setattr(TrackingSender, "first_wait", 0.1)
    network = {
        "size": "B", "width": 32, "depth": 2, "heads": 2, "bottleneck": 24, "context_from": 1, "context_tokens": 2
    }  # fmt: skip
    tree = {
        "curated": "none", "classes": 4, "network": network, "subspace": {"rank": 6, "kind": "random"},
        "optim": {"steps": STEPS, "batch": BATCH, "lr": 1e-3, "warmup_steps": 2}, "ema": {"decay": 0.9},
        "checkpoints": {"every": 4}, "resources": {"zero_stage": 0}, "validation": None,
    }  # fmt: skip
    Subspace(torch.eye(768, 6), 1.0, LAYOUT, SrgbSpace(), {}).save(tmp_path / "subspace.safetensors")

    class Task(PretrainTask):
        def __init__(self, config, rank, workers):
            self.settings = settings = PretrainSettings.model_validate(config["settings"])
            self.model = build_model(settings, Subspace.load(tmp_path / "subspace.safetensors"))
            self.objective = make_objective(self.model, settings.loss, None, None)
            self.data_loader, self.size, self.rank, self.workers = config["batches"], (SIDE, SIDE), rank, workers

    def go(folder, batches=None, signals=None, **sections):
        settings = validate(PretrainSettings, {**tree, **sections})
        signals, batches = signals or Signals(), batches or Batches()
        monkeypatch.setattr(loop, "Channel", lambda attempt: signals)
        run = RunSettings(storage=str(tmp_path), tracking_uri=mlflow_store)
        with open_run(run, "pretrain", go.run_id) as tracker:
            go.run_id = tracker.run_id
            config = {
                "settings": settings.model_dump(mode="json"), "tracker": vars(tracker), "folder": str(folder),
                "step": "pretrain", "attempt": RunLease.claim(str(folder)).name, "on_terminal": False,
                "batches": batches,
            }  # fmt: skip
            return loop.train_loop(Task, config)

    def points(name="train/loss"):
        history = MlflowClient(mlflow_store).get_metric_history(go.run_id, name)
        return {m.step: m.value for m in history}

    go.run_id, go.points = None, points
    return go


def metrics_log_in(folder) -> MetricsLog:
    return MetricsLog.from_json(storage.read_bytes(f"{folder}/{METRICS_LOG}").decode())


@pytest.fixture
def plain(train, tmp_path) -> MetricsLog:
    """Return the result of an uninterrupted run."""
    assert train(tmp_path / "plain") == {"ended": "finished", "step": STEPS}
    train.run_id = None
    return metrics_log_in(tmp_path / "plain")


def stop_at(signals: Signals, batches: Batches, step: int, before=lambda: None) -> None:
    def watch():
        while len(batches.times) < step:
            time.sleep(0.01)
        before()
        signals.asked.set()

    threading.Thread(target=watch, daemon=True).start()


def test_a_stopped_run_resumes_bit_for_bit(train, plain, tmp_path):
    signals, batches, folder = Signals(), Batches(pause=0.1), tmp_path / "stopped"
    stop_at(signals, batches, 5)
    ended = train(folder, batches, signals)
    step = ended["step"]
    assert ended == {"ended": "stopped", "step": step, "good": step, "reason": ""}
    assert 5 <= step < STEPS
    assert signals.told[0] == {"good": None}
    assert signals.told[-1] == {"good": step}
    assert sorted(train.points()) == list(range(1, step + 1))
    assert train(folder) == {"ended": "finished", "step": STEPS}
    assert vars(metrics_log_in(folder)) == vars(plain)
    assert train.points() == dict(zip(plain.steps, plain.curves["loss"], strict=True))
    state = list_checkpoints(folder_of(str(folder)))[-1].state
    assert "record" not in state
    assert len(json.dumps(state)) < 4000
    assert len(storage.list_files(history_folder(str(folder)))) <= 2  # of the checkpoints that are kept


def test_a_checkpoint_of_the_old_format_is_resumed(train, plain, tmp_path):
    signals, batches, folder = Signals(), Batches(pause=0.1), tmp_path / "old"
    stop_at(signals, batches, 5)
    train(folder, batches, signals)
    for checkpoint in list_checkpoints(folder_of(str(folder))):  # as an older version wrote it
        state = dict(checkpoint.state)
        metrics_log = vars(read_metrics_log(str(folder), state))
        del metrics_log["skipped_keys"], state["summary"], state["history"]
        state["record"] = json.dumps(metrics_log)
        storage.write_bytes(f"{checkpoint.uri}/state.json", json.dumps(state).encode())
    storage.delete_folder(history_folder(str(folder)))
    assert train(folder)["ended"] == "finished"
    assert vars(metrics_log_in(folder)) == vars(plain)


@pytest.fixture
def gate(s3, s3_server, monkeypatch):
    with gate_before(int(s3_server.url.rpartition(":")[2])) as gate:
        monkeypatch.setenv("AWS_ENDPOINT_URL", gate.url)
        yield gate


def longest_pause(batches: Batches) -> float:
    return max(b - a for a, b in zip(batches.times, batches.times[1:], strict=False))


def test_a_stop_during_an_outage_ends_in_time(train, plain, gate, s3):
    signals, batches, folder = Signals(), Batches(pause=0.2), f"{s3}/stopped"
    away = threading.Event()

    def go_away():
        while not signals.told[-1]["good"]:
            time.sleep(0.01)
        gate.close()
        away.set()
        time.sleep(1)

    stop_at(signals, batches, 4, go_away)
    started = time.monotonic()
    settings = {"checkpoints": {"every": 2}, "watch": {"stop_minutes": 0.1}}
    ended = train(
        folder, batches, signals, optim={"steps": 100, "batch": BATCH, "lr": 1e-3, "warmup_steps": 2}, **settings
    )
    assert away.is_set()
    assert time.monotonic() - started < 60
    assert ended["ended"] == "stopped"
    assert ended["good"] < ended["step"]
    assert "the store has not taken it" in ended["reason"]
    assert longest_pause(batches) < 2
    gate.open()
    assert list_checkpoints(folder_of(folder))[-1].step == ended["good"]


def test_training_continues_during_an_outage(train, plain, gate, s3, monkeypatch):
    monkeypatch.setattr("pipelines.core.s3.RETRIES.wait", lambda state: 0.2)
    batches, folder = Batches(pause=0.2), f"{s3}/away"

    def interrupt():
        while len(batches.times) < 5:
            time.sleep(0.01)
        gate.close()
        time.sleep(1.5)
        gate.open()

    threading.Thread(target=interrupt, daemon=True).start()
    assert train(folder, batches, checkpoints={"every": 2})["ended"] == "finished"
    assert longest_pause(batches) < 2
    assert vars(metrics_log_in(folder)) == vars(plain)
    assert list_checkpoints(folder_of(folder))[-1].step == STEPS


def test_a_stop_of_a_finished_run_during_an_outage_is_reported(train, gate, s3, monkeypatch):
    signals, batches, folder = Signals(), Batches(pause=0.1), f"{s3}/end"

    def interrupt():
        while len(batches.times) < STEPS - 1:
            time.sleep(0.01)
        gate.close()
        time.sleep(2)
        signals.asked.set()

    threading.Thread(target=interrupt, daemon=True).start()
    monkeypatch.setattr("pipelines.core.s3.RETRIES.stop", lambda state: state.attempt_number >= 2)
    ended = train(folder, batches, signals, watch={"stop_minutes": 0.1})
    assert ended["ended"] == "stopped"
    assert ended["good"] in (4, 8)
    assert ended["reason"]
    gate.open()


def test_keys_of_a_skipped_step_are_in_the_artifact_and_in_mlflow(train, tmp_path, mlflow_store, caplog):
    assert train(tmp_path / "skips", Batches(poisoned={7}))["ended"] == "finished"
    keys = [f"shard/7-{i}" for i in range(BATCH)]
    metrics_log = metrics_log_in(tmp_path / "skips")
    assert metrics_log.skipped == [7]
    assert metrics_log.skipped_keys == {"7": keys}
    client = MlflowClient(mlflow_store)
    (file,) = client.list_artifacts(train.run_id, "skipped")
    assert file.path == "skipped/step-00000007.txt"
    with open(client.download_artifacts(train.run_id, file.path, str(tmp_path))) as text:
        assert text.read().splitlines() == keys
    (told,) = [r.message for r in caplog.records if "step 7 skipped" in r.message]
    assert told.endswith(", ".join(keys))


def test_unsent_metrics_are_sent_by_the_next_attempt(train, plain, tmp_path, monkeypatch):
    signals, batches, folder = Signals(), Batches(pause=0.1), tmp_path / "missed"
    stop_at(signals, batches, 5)

    def refuse(self, rows):
        raise OSError("away")

    with monkeypatch.context() as away:
        away.setattr("pipelines.core.tracking.Tracker.log_rows", refuse)
        ended = train(folder, batches, signals, watch={"stop_minutes": 0.1})
    assert ended["ended"] == "stopped"
    assert train.points() == {}
    rows = json.loads(storage.read_bytes(unsent_file(str(folder))))
    assert [row[0] for row in rows] == list(range(1, ended["step"] + 1))
    assert train(folder)["ended"] == "finished"
    assert train.points() == dict(zip(plain.steps, plain.curves["loss"], strict=True))
    assert set(train.points("train/speed/seconds_per_step")) == set(plain.steps)


def test_batches_of_the_test_differ_by_step():
    first, second = Batches().batch(1), Batches().batch(2)
    assert not torch.equal(first.images, second.images)
    assert torch.equal(first.images, Batches().batch(1).images)
    assert replace(first).keys == first.keys
