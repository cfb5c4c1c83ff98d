import pytest
import torch

from pipelines.finetune.record import Record


def test_means_by_step_and_by_noise_level_survive_a_restart():
    record = Record(4)
    sigma = torch.tensor([0.05, 0.05, 0.95, 1.0])
    record.add(1, {"sigma": sigma, "loss": torch.tensor([1.0, 3.0, 5.0, 7.0])})
    record = Record.from_json(record.to_json())
    record.add(2, {"sigma": sigma, "loss": torch.tensor([1.0, 3.0, 5.0, 7.0])})
    assert record.steps == [1, 2] and record.curves["loss"] == [4.0, 4.0]
    places, means = record.means_by_sigma("loss")
    assert places == pytest.approx([0.05, 0.95]) and means == pytest.approx([2.0, 6.0])
