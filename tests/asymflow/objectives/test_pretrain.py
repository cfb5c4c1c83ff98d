import pytest
import torch

from asymflow.losses import repa_loss
from asymflow.models.dinov2 import DinoFeatures
from asymflow.models.jit import JiTConfig, PixelJiT
from asymflow.objectives import PretrainObjective
from asymflow.srgb import SrgbSpace
from asymflow.subspace import Subspace, random_basis

CONFIG = JiTConfig(width=24, depth=3, heads=2, bottleneck=16, context_from=1, context_tokens=2, classes=4)


def batch(pictures=3, side=32):
    generator = torch.Generator().manual_seed(0)
    return dict(
        images=torch.rand(pictures, 3, side, side, generator=generator) * 2 - 1,
        noise=torch.randn(pictures, 3, side, side, generator=generator),
        sigma=torch.tensor([0.01, 0.5, 0.9])[:pictures],
        weight=torch.tensor([1.5, 1.5, 0.0])[:pictures],
        labels=torch.tensor([0, 3, 4])[:pictures],
    )


def model():
    torch.manual_seed(0)
    found = PixelJiT(CONFIG, Subspace(random_basis(768, 8).float(), 1.0, "channel_last", SrgbSpace()))
    for parameter in found.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return found


def test_loss_is_the_weighted_velocity_error():
    student, given = model(), batch()
    loss, terms = PretrainObjective(student)(**given)
    assert terms.keys() == {"loss", "flow_matching"}
    assert not terms["loss"].requires_grad
    torch.testing.assert_close(float(loss), float((given["weight"] * terms["loss"]).mean()))
    above = given["sigma"] > 0.05  # where no floor holds, the target is u
    sigma = given["sigma"][:, None, None, None]
    x_t = (1 - sigma) * given["images"] + sigma * given["noise"]
    u_hat = student(x_t, given["sigma"], given["labels"], sigma_floor=5e-2)
    expected = (u_hat - (given["noise"] - given["images"])).square().mean((1, 2, 3))
    torch.testing.assert_close(terms["loss"][above], expected[above].detach())


def test_alignment_is_added_at_its_weight_and_teaches_the_first_blocks_alone(dinov2):
    student, encoder, given = model(), DinoFeatures(dinov2), batch()
    student.add_projector(block=1, features=encoder.width, width=12)
    objective = PretrainObjective(student, encoder=encoder, repa_weight=0.5)
    loss, terms = objective(**given)
    torch.testing.assert_close(terms["loss"], terms["flow_matching"] + 0.5 * terms["repa"])
    assert ((terms["repa"] >= 0) & (terms["repa"] <= 2)).all()
    assert "encoder" not in " ".join(name for name, _ in objective.named_parameters())
    targets = encoder(given["images"], (2, 2))
    assert float(repa_loss(targets, targets)) == pytest.approx(0, abs=1e-6)
    loss.backward()
    assert student.projector[0].weight.grad.abs().sum() > 0
