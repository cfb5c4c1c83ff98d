import pytest
import torch
from torch import nn

from pipelines.toy.training import adamw, train


def run(folder, steps, until=None):
    """Train a small model; with `until`, fail at that step as a kill would."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    optimizers = [torch.optim.Muon(matrices, lr=1e-2, adjust_lr_fn="match_rms_adamw"), adamw(vectors, lr=1e-2)]

    def loss_of(step, generator):
        if step == until:
            raise KeyboardInterrupt
        x = torch.randn(32, 8, generator=generator)
        return (model(x)[:, 0] - x.sum(1)).square().mean()

    return train("model", model, loss_of, folder, steps, optimizers, dict, report_every=10).state_dict()


def test_an_interrupted_run_resumes_to_the_same_weights(tmp_path):
    undisturbed = run(tmp_path / "a", 40)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", 40, until=27)
    resumed = run(tmp_path / "b", 40)
    assert all(torch.equal(resumed[name], value) for name, value in undisturbed.items())


def test_a_finished_run_returns_its_weights_without_another_step(tmp_path):
    assert all(
        torch.equal(value, again)
        for value, again in zip(run(tmp_path, 20).values(), run(tmp_path, 20, until=0).values(), strict=True)
    )


def test_training_lowers_the_loss(tmp_path):
    import json

    run(tmp_path, 400)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "model.log").read_text().splitlines()]
    assert losses[-1] < 0.5 * losses[0]
