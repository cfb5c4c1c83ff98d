"""Metrics reach a real MLflow server through an outage, without delaying the training."""

import time
from types import SimpleNamespace

import pytest
from gate import gate_before
from mlflow import MlflowClient
from mlflow_server import serve_mlflow
from PIL import Image

from pipelines.core.config import RunSettings
from pipelines.core.tracking import MetricsRow, Tracker, open_run
from pipelines.train import tracking_sender
from pipelines.train.tracking_sender import TrackingSender


@pytest.fixture(scope="module")
def gate(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        with serve_mlflow(tmp_path_factory.mktemp("server")) as url, gate_before(int(url.rpartition(":")[2])) as gate:
            yield gate


@pytest.fixture
def tracker(gate, tmp_path, monkeypatch) -> Tracker:
    monkeypatch.setattr(TrackingSender, "first_wait", 0.1)
    monkeypatch.setattr(TrackingSender, "longest_wait", 0.2)
    with open_run(RunSettings(storage=str(tmp_path), tracking_uri=gate.url), "run") as tracker:
        for name, value in (("TIMEOUT", "20"), ("MAX_RETRIES", "0")):
            monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", value)
        return tracker


def points(tracker: Tracker, name: str = "train/loss") -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in MlflowClient(tracker.uri).get_metric_history(tracker.run_id, name)]


def close(gate) -> None:
    gate.close()


def hang(gate) -> None:
    gate.hanging = True


@pytest.mark.parametrize("fail", [close, hang])
def test_an_outage_delays_nothing_and_loses_no_point(gate, tracker, caplog, monkeypatch, fail):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    sender = TrackingSender(tracker)
    sender.start()
    longest = 0.0
    for step in range(1, 101):
        if step == 30:
            fail(gate)
        before = time.monotonic()
        sender.add(step, {"train/loss": 1 / step, "train/gradient_norm": 1.0})
        if step == 40:
            sender.send(lambda tracker: tracker.log_image_at_step("val/pictures", Image.new("RGB", (8, 8)), 40))
        longest = max(longest, time.monotonic() - before)
        time.sleep(0.02)
    assert longest < 0.5  # the machine paused, rather than a request
    assert len(sender.unsent()) >= 60
    deadline = time.monotonic() + 30
    while "does not answer" not in caplog.text:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    if fail is close:
        gate.open()
    gate.hanging = False
    assert sender.close(60)
    assert points(tracker) == [(step, 1 / step) for step in range(1, 101)]
    assert [a.path for a in MlflowClient(tracker.uri).list_artifacts(tracker.run_id, "images")]
    told = [r.message for r in caplog.records if "MLflow" in r.message]
    assert len(told) == 2, told
    assert "does not answer" in told[0], told
    assert "answers again" in told[1], told


def test_metrics_of_an_earlier_attempt_are_not_sent_twice(tracker):
    tracker.log_rows([MetricsRow(step, 1000 + step, {"train/loss": 1.0}) for step in range(1, 8)])
    sender = TrackingSender(tracker)
    sender.start([MetricsRow(step, 1000 + step, {"train/loss": 2.0}) for step in range(5, 10)])
    sender.add(8, {"train/loss": 3.0})  # a repeated step
    sender.add(10, {"train/loss": 3.0})
    assert sender.close(20)
    assert [step for step, _ in points(tracker)] == list(range(1, 11))


def test_the_queue_is_bounded_and_losses_are_logged(tracker, gate, caplog, monkeypatch):
    monkeypatch.setattr(tracking_sender, "MOST_ROWS", 50)
    gate.close()
    sender = TrackingSender(tracker)
    sender.start()
    for step in range(1, 81):
        sender.add(step, {"train/loss": 1.0})
    assert [row.step for row in sender.unsent()] == list(range(31, 81))
    assert sender.lost == 30
    assert "unavailable for 50 steps: dropping the oldest" in caplog.text
    started = time.monotonic()
    assert not sender.close(0.5)
    assert time.monotonic() - started < 2
    gate.open()


def test_rows_of_many_metrics_are_sent_in_whole_steps(monkeypatch):
    sent = []
    monkeypatch.setattr(Tracker, "client", SimpleNamespace(log_batch=lambda run, metrics: sent.append(metrics)))
    values = {f"m{i}": 1.0 for i in range(300)}
    Tracker("", "run").log_rows(MetricsRow(step, 0, values) for step in range(7))
    assert [len(request) for request in sent] == [900, 900, 300]
    assert all(len([m for m in request if m.step == s]) in (0, 300) for request in sent for s in range(7))
