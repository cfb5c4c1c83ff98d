"""The table and the image grids; what MLflow gets is in test_step.py."""

from pipelines.core.config import validate
from pipelines.evaluate.config import EvaluateSettings
from pipelines.evaluate.show import group_of, table_of

ROW = {
    "model": "trained", "metric": "fid", "category": "", "value": 12.34567, "low": None, "high": None,
    "better": "low", "prompts": 5, "pictures": 10, "fingerprint": "abc",
}  # fmt: skip


def test_metrics_in_mlflow_are_grouped_by_suite():
    assert group_of(validate(EvaluateSettings, {"suite": "dpg"})) == "eval/dpg"


def test_the_table_has_four_digits_and_an_interval_where_there_is_one():
    lines = table_of([ROW, {**ROW, "category": "cats", "low": 11.99999, "high": 13.5}]).splitlines()
    assert lines[0].split() == ["model", "metric", "category", "value", "interval", "pictures", "protocol"]
    assert lines[1].split() == ["trained", "fid", "12.35", "10", "abc"]
    assert lines[2].split() == ["trained", "fid", "cats", "12.35", "[12,", "13.5]", "10", "abc"]
