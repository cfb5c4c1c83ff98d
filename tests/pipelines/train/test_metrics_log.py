import pytest
import torch

from pipelines.train.metrics_log import MetricsLog


def terms(loss: list[float], weight: list[float] | None = None) -> dict[str, torch.Tensor]:
    return {
        "sigma": torch.tensor([0.05, 0.05, 0.95, 1.0]),
        "loss": torch.tensor(loss),
        "weight": torch.tensor(weight or [1.0] * 4),
        "key_sums": torch.tensor([2.0**32, 1, 2, 3]).double(),
    }


def test_means_by_step_and_by_noise_level_survive_a_restart():
    metrics_log = MetricsLog()
    metrics_log.add(1, terms([1.0, 3.0, 5.0, 7.0]))
    metrics_log = MetricsLog.from_json(metrics_log.to_json())
    metrics_log.add(2, terms([1.0, 3.0, 5.0, 7.0]))
    assert metrics_log.steps == [1, 2]
    assert metrics_log.curves["loss"] == [4.0, 4.0]
    assert metrics_log.last()["loss"] == 4.0
    places, means = metrics_log.means_by_sigma("loss")
    assert places == pytest.approx([0.05, 0.95])
    assert means == pytest.approx([2.0, 6.0])
    assert metrics_log.key_sums == [2**32 + 6] * 2


def test_padding_samples_are_in_no_mean():
    metrics_log = MetricsLog()
    metrics_log.add(1, terms([1.0, 3.0, 5.0, 700.0], weight=[1.5, 1.5, 1.5, 0.0]))
    assert metrics_log.curves["loss"] == [3.0]
    assert metrics_log.means_by_sigma("loss")[1] == pytest.approx([2.0, 5.0])


def test_a_skipped_step_is_in_the_curve_and_not_in_the_means_by_noise_level():
    metrics_log = MetricsLog()
    metrics_log.add(1, terms([1.0, 3.0, 5.0, 7.0]))
    metrics_log.add(2, terms([1.0, float("nan"), 5.0, 7.0]), skipped=True)
    metrics_log = MetricsLog.from_json(metrics_log.to_json())
    assert metrics_log.skipped == [2]
    assert metrics_log.steps == [1, 2]
    assert metrics_log.curves["loss"][0] == 4.0
    assert metrics_log.means_by_sigma("loss")[1] == pytest.approx([2.0, 6.0])
