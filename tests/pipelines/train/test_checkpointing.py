"""Checkpoints of rank 0 with their history and unsent metrics, without Ray."""

import pytest
import torch

from pipelines.core.tracking import MetricsRow
from pipelines.train.checkpoint import folder_of, list_checkpoints, load_newest
from pipelines.train.checkpointing import Checkpointer
from pipelines.train.config import Checkpoints
from pipelines.train.metrics_log import MetricsLog
from pipelines.train.run_lease import RunLease
from pipelines.train.tracking_log import read_unsent


class Reports:
    """The part of `Channel` that a checkpoint uses."""

    def __init__(self):
        self.good = []

    def report(self, good):
        self.good.append(good)


@pytest.fixture
def start(tmp_path):
    """Call for a new attempt: its checkpointer."""

    def begin(**settings):
        lease = RunLease.claim(str(tmp_path))
        return Checkpointer(
            lease, Checkpoints(**settings), Reports(), lambda: [MetricsRow(4, 1000, {"train/loss": 0.5})]
        )

    return begin


def metrics_log_of(steps):
    metrics_log = MetricsLog()
    for step in range(1, steps + 1):
        terms = {"loss": torch.full((1,), 1 / step), "sigma": torch.full((1,), 0.5), "weight": torch.ones(1)}
        metrics_log.add(step, {**terms, "key_sums": torch.full((1,), float(step))})
    return metrics_log


def submit(checkpointer, step):
    values = torch.full((2,), float(step))
    checkpointer.submit({"trainable": {"w": values}}, {"step": step}, metrics_log_of(step))
    values.zero_()  # the next step changes them
    assert checkpointer.uploader.wait(20)


def test_a_checkpoint_holds_copies_of_the_values_and_is_reported(start, tmp_path):
    checkpointer = start()
    submit(checkpointer, 3)
    checkpoint, tensors = load_newest(folder_of(str(tmp_path)), ["trainable"])
    assert checkpoint.step == 3
    assert tensors["trainable"]["w"].tolist() == [3, 3]
    assert checkpointer.channel.good == [3]
    assert checkpointer.end() == {"good": 3, "reason": ""}
    assert read_unsent(str(tmp_path)) == [MetricsRow(4, 1000, {"train/loss": 0.5})]


def test_old_checkpoints_are_deleted_by_the_settings(start, tmp_path):
    checkpointer = start(keep_last=1, keep_every=2)
    for step in (1, 2, 3, 4, 5):
        submit(checkpointer, step)
    assert [checkpoint.step for checkpoint in list_checkpoints(folder_of(str(tmp_path)))] == [2, 4, 5]


def test_the_next_attempt_continues_the_history(start, tmp_path):
    submit(start(), 3)
    checkpoint, _ = load_newest(folder_of(str(tmp_path)), [])
    again = start()
    metrics_log = again.resume(checkpoint.state)
    assert vars(metrics_log) == vars(metrics_log_of(3))
    assert again.end()["good"] == 3


def test_an_older_attempt_writes_no_more(start, tmp_path, caplog):
    older = start()
    submit(older, 3)
    start()
    older.submit({"trainable": {"w": torch.zeros(2)}}, {"step": 4}, metrics_log_of(4))
    older.uploader.wait(20)
    assert [checkpoint.step for checkpoint in list_checkpoints(folder_of(str(tmp_path)))] == [3]
    assert older.end()["good"] == 3
    assert "a newer attempt of this run has taken over" in older.end()["reason"]
