"""Training history in files of its own: checkpoint states stay small, and old states still load."""

import json
import time
from pathlib import Path

import pytest
import torch

from pipelines.core import storage
from pipelines.train.history import HistoryWriter, history_folder, prune_history, read_metrics_log, summary_of
from pipelines.train.metrics_log import MetricsLog


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr("pipelines.train.metrics_log.CHUNK", 10)
    monkeypatch.setattr("pipelines.train.history.CHUNK", 10)


def extend(metrics_log: MetricsLog, last: int) -> MetricsLog:
    for step in range(len(metrics_log.steps) + 1, last + 1):
        terms = {name: torch.tensor([0.1, 0.9]) * step for name in ("sigma", "loss")}
        terms |= {"weight": torch.ones(2), "key_sums": torch.ones(2).double() * step}
        metrics_log.add(step, terms, skipped=step == 7)
        if step == 7:
            metrics_log.skipped_keys["7"] = ["shard-1/a", "shard-1/b"]
    return metrics_log


def checkpoint(writer: HistoryWriter, metrics_log: MetricsLog) -> dict:
    state = {
        "step": metrics_log.steps[-1],
        "summary": metrics_log.summary(),
        "history": writer.write(metrics_log.chunks(writer.full)),
    }
    return json.loads(json.dumps(state))


def files(folder) -> list[str]:
    return [uri.rpartition("/")[2] for uri in storage.list_files(history_folder(str(folder)))]


def test_history_in_pieces_round_trips(tmp_path):
    writer, metrics_log, states = HistoryWriter(str(tmp_path), "one"), MetricsLog(), []
    for last in (4, 10, 15, 33):
        states.append(checkpoint(writer, extend(metrics_log, last)))
    assert vars(read_metrics_log(str(tmp_path), states[-1])) == vars(metrics_log)
    assert read_metrics_log(str(tmp_path), states[0]).steps == [1, 2, 3, 4]
    assert summary_of(states[-1]) == metrics_log.summary()
    assert metrics_log.summary()["skipped"] == [7]
    # full chunks are written once
    assert [entry["file"][:14] for entry in states[-1]["history"]] == [
        "00000-00000010", "00001-00000020", "00002-00000030", "00003-00000033"
    ]  # fmt: skip
    prune_history(str(tmp_path), states[-1:])
    assert files(tmp_path) == [entry["file"] for entry in states[-1]["history"]]


def test_another_attempt_writes_its_own_files(tmp_path):
    first, metrics_log = HistoryWriter(str(tmp_path), "one"), MetricsLog()
    state = checkpoint(first, extend(metrics_log, 14))
    checkpoint(first, extend(metrics_log, 25))  # lost: the run resumes from 14
    again = read_metrics_log(str(tmp_path), state)
    second = HistoryWriter(str(tmp_path), "two", state["history"])
    newest = checkpoint(second, extend(again, 22))
    assert read_metrics_log(str(tmp_path), newest).steps == list(range(1, 23))
    assert [entry["file"][-8:-5] for entry in newest["history"]] == ["one", "two", "two"]


def test_a_damaged_file_costs_its_steps_and_never_the_checkpoint(tmp_path, caplog):
    writer = HistoryWriter(str(tmp_path), "one")
    state = checkpoint(writer, extend(MetricsLog(), 33))
    lost, broken = (Path(history_folder(str(tmp_path))) / state["history"][i]["file"] for i in (0, 2))
    lost.unlink()
    broken.write_text("{}")
    metrics_log = read_metrics_log(str(tmp_path), state)
    assert metrics_log.steps == [*range(11, 21), 31, 32, 33]
    assert metrics_log.skipped == [7]
    assert "is missing" in caplog.text
    assert "damaged" in caplog.text
    assert {number: len(rows["steps"]) for number, rows in metrics_log.chunks().items()} == {1: 10, 3: 3}


def test_states_of_the_old_format_load(tmp_path):
    """Old checkpoints contain the metrics log as JSON text, without the keys of skipped samples."""
    metrics_log = extend(MetricsLog(), 25)
    old = {name: value for name, value in vars(metrics_log).items() if name != "skipped_keys"}
    state = {"step": 25, "record": json.dumps(old)}
    found = read_metrics_log(str(tmp_path), state)
    assert vars(found) == vars(metrics_log) | {"skipped_keys": {}}
    assert summary_of(state)["skipped"] == [7]
    newer = checkpoint(HistoryWriter(str(tmp_path), "new"), extend(found, 31))
    assert read_metrics_log(str(tmp_path), newer).steps == list(range(1, 32))


def test_on_s3(s3):
    writer, metrics_log = HistoryWriter(s3, "one"), MetricsLog()
    state = checkpoint(writer, extend(metrics_log, 12))
    newest = checkpoint(writer, extend(metrics_log, 14))
    prune_history(s3, [newest])
    assert [uri.rpartition("/")[2][:14] for uri in storage.list_files(history_folder(s3))] == [
        "00000-00000010", "00001-00000014"
    ]  # fmt: skip
    assert read_metrics_log(s3, newest).steps == metrics_log.steps
    assert state["history"][0] == newest["history"][0]


def test_the_state_of_a_long_run_is_small_and_quick(tmp_path, monkeypatch):
    """751,200 steps, 600 epochs of ImageNet: the old state had 47 MB, parsed per checkpoint at each prune."""
    monkeypatch.setattr("pipelines.train.metrics_log.CHUNK", 10_000)
    monkeypatch.setattr("pipelines.train.history.CHUNK", 10_000)
    metrics_log, steps = MetricsLog(), 751_200
    metrics_log.steps = list(range(1, steps + 1))
    metrics_log.key_sums = [2**40] * steps
    metrics_log.curves = {name: [0.123456789] * steps for name in ("sigma", "loss", "low", "omega")}
    metrics_log.by_sigma = {name: [1.0] * 10 for name in metrics_log.curves}
    writer = HistoryWriter(str(tmp_path), "one")
    checkpoint(writer, metrics_log)
    started = time.monotonic()
    state = checkpoint(writer, metrics_log)
    assert len(json.dumps(state)) < 20_000
    assert time.monotonic() - started < 2
    assert len(metrics_log.chunks(writer.full)) == 1
