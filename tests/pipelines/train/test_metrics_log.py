import pytest
import torch

from pipelines.train.metrics_log import Record


def terms(loss: list[float], weight: list[float] | None = None) -> dict[str, torch.Tensor]:
    return {
        "sigma": torch.tensor([0.05, 0.05, 0.95, 1.0]),
        "loss": torch.tensor(loss),
        "weight": torch.tensor(weight or [1.0] * 4),
        "key_sums": torch.tensor([2.0**32, 1, 2, 3]).double(),
    }


def test_means_by_step_and_by_noise_level_survive_a_restart():
    record = Record()
    record.add(1, terms([1.0, 3.0, 5.0, 7.0]))
    record = Record.from_json(record.to_json())
    record.add(2, terms([1.0, 3.0, 5.0, 7.0]))
    assert record.steps == [1, 2] and record.curves["loss"] == [4.0, 4.0] and record.last()["loss"] == 4.0
    places, means = record.means_by_sigma("loss")
    assert places == pytest.approx([0.05, 0.95]) and means == pytest.approx([2.0, 6.0])
    assert record.key_sums == [2**32 + 6] * 2


def test_what_only_fills_a_batch_is_in_no_mean():
    record = Record()
    record.add(1, terms([1.0, 3.0, 5.0, 700.0], weight=[1.5, 1.5, 1.5, 0.0]))
    assert record.curves["loss"] == [3.0] and record.means_by_sigma("loss")[1] == pytest.approx([2.0, 5.0])


def test_a_skipped_step_is_in_the_curve_and_not_in_the_means_by_noise_level():
    record = Record()
    record.add(1, terms([1.0, 3.0, 5.0, 7.0]))
    record.add(2, terms([1.0, float("nan"), 5.0, 7.0]), skipped=True)
    record = Record.from_json(record.to_json())
    assert record.skipped == [2] and record.steps == [1, 2] and record.curves["loss"][0] == 4.0
    assert record.means_by_sigma("loss")[1] == pytest.approx([2.0, 6.0])
