import pytest
import torch

from asymflow.losses import perceptual_loss, vr_loss
from asymflow.models.flux2 import PixelFlux2
from asymflow.oklab import RELEASED
from asymflow.patches import patchify
from asymflow.subspace import Subspace
from pipelines.finetune.batches import Batch
from pipelines.finetune.config import Loss, Perceptual
from pipelines.finetune.objective import Objective


@pytest.fixture
def model(tiny_transformer) -> PixelFlux2:
    torch.manual_seed(0)
    A = torch.linalg.qr(torch.randn(768, 128)).Q
    model = PixelFlux2.from_latent(tiny_transformer(8), Subspace(A, 1.7, "channel_first", RELEASED, {}))
    model.add_lora(rank=2, dropout=0.0)
    return model


def batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    return Batch(
        images=torch.rand(3, 3, 32, 48, generator=generator) * 2 - 1,
        z_0=torch.randn(3, 6, 128, generator=generator),
        text=torch.randn(3, 4, 8, generator=generator),
        text_mask=torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]).bool(),
        noise=torch.randn(3, 3, 32, 48, generator=generator),
        sigma=torch.tensor([0.02, 0.4, 0.9]),
    )


def test_flow_matching_is_the_squared_velocity_error(model):
    data = batch()
    loss, terms = Objective(model, Loss(kind="flow_matching", loss_scale=5.0))(data)
    x_0 = RELEASED.encode(data.images)
    sigma = data.sigma[:, None, None, None]
    u_hat = model((1 - sigma) * x_0 + sigma * data.noise, data.sigma, data.text, data.text_mask)
    assert torch.isclose(loss, 5 * (data.noise - x_0 - u_hat).square().mean(), rtol=1e-5)
    assert terms["loss"].shape == (3,)


@pytest.mark.parametrize("granularity", ["patch", "patch_channel"])
def test_the_variance_reduced_loss_is_that_of_the_equations(model, granularity):
    data = batch()
    judge = Perceptual(net="squeeze", weights="random", weight=0.2)
    objective = Objective(model, Loss(granularity=granularity, perceptual=judge))
    loss, terms = objective(data)
    x_0 = RELEASED.encode(data.images)
    sigma = data.sigma[:, None, None, None]
    x_t = (1 - sigma) * x_0 + sigma * data.noise
    x_0_hat = x_t - sigma * model(x_t, data.sigma, data.text, data.text_mask)
    x_0_low_hat = model.teacher_x_0_low(
        data.z_0, patchify(data.noise, 16), data.sigma, data.text, grid=(2, 3), text_mask=data.text_mask
    )
    x_0_low = model.s * data.z_0 @ model.A.mT
    vr, lam = vr_loss(
        patchify(x_0, 16), patchify(x_0_hat, 16), x_0_low, x_0_low_hat, data.sigma, granularity=granularity
    )
    distance = objective._judge[0](RELEASED.decode(x_0_hat), data.images)
    expected = vr + 0.2 * perceptual_loss(distance, lam, data.sigma)
    assert torch.isclose(loss, expected, rtol=1e-4)
    assert torch.isclose(terms["lambda"].mean(), lam.mean(), rtol=1e-4)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.trainable().values())
    frozen = [p for p in model.parameters() if not p.requires_grad]
    assert frozen and all(p.grad is None for p in frozen)


def test_the_judge_is_no_part_of_the_trained_module(model):
    objective = Objective(model, Loss(perceptual=Perceptual(net="squeeze", weights="random")))
    assert all(name.startswith("model.") for name, _ in objective.named_parameters())
