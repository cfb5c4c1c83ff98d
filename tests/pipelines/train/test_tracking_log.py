import json

import pytest
from mlflow import MlflowClient

from pipelines.core.config import RunSettings
from pipelines.core.tracking import MetricsRow, Tracker, open_run
from pipelines.train.tracking_log import read_unsent, send_unsent, write_unsent


@pytest.fixture
def tracker(tmp_path, mlflow_store) -> Tracker:
    run = RunSettings(storage=str(tmp_path), tracking_uri=mlflow_store)
    with open_run(run, "run") as tracker:
        return tracker


def points(tracker: Tracker, name: str = "train/loss") -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in MlflowClient(tracker.uri).get_metric_history(tracker.run_id, name)]


def test_unsent_metrics_are_sent_after_the_workers_end(tracker, tmp_path):
    folder = str(tmp_path / "artifact")
    assert read_unsent(folder) == []
    tracker.log_rows([MetricsRow(1, 1000, {"train/loss": 1.0})])
    write_unsent(folder, [MetricsRow(step, 1000 * step, {"train/loss": 1 / step}) for step in (1, 2, 3)])
    assert json.loads((tmp_path / "artifact/.train/unsent.json").read_text())[1] == [2, 2000, {"train/loss": 0.5}]
    for _ in range(2):  # and once
        send_unsent(tracker, folder)
    assert points(tracker) == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
