from dataclasses import replace

import pytest
import torch

from asymflow.losses import perceptual_loss, vr_loss
from asymflow.models.ddt import DdtFlux2
from asymflow.models.flux2 import LatentFlux2, PixelFlux2
from asymflow.oklab import RELEASED
from asymflow.patches import patchify
from asymflow.subspace import Subspace
from pipelines.train.finetune.batches import Batch
from pipelines.train.finetune.config import Loss, Perceptual
from pipelines.train.finetune.objective import Objective


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
        weight=torch.ones(3),
        keys=["a", "b", "c"],
        key_sums=torch.tensor([1.0, 2.0, 3.0]).double(),
    )


def test_flow_matching_is_the_squared_velocity_error(model):
    data = batch()
    loss, terms = Objective(model, Loss(kind="flow_matching", loss_scale=5.0))(data)
    x_0 = RELEASED.encode(data.images)
    sigma = data.sigma[:, None, None, None]
    u_hat = model((1 - sigma) * x_0 + sigma * data.noise, data.sigma, data.text, data.text_mask)
    assert torch.isclose(loss, 5 * (data.noise - x_0 - u_hat).square().mean(), rtol=1e-5)
    assert terms["loss"].shape == (3,)


def test_what_only_fills_a_batch_counts_nothing(model):
    """A batch of two pictures with a third of weight 0: the loss and its gradient are those of the two."""
    loss_of = Objective(model, Loss(kind="flow_matching"))
    data = batch()
    rows = {name: value[:2] for name, value in vars(data).items()}
    gradients = []
    for part in (Batch(**rows), replace(data, weight=torch.tensor([1.5, 1.5, 0.0]))):
        model.zero_grad()
        loss_of(part)[0].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.trainable().values()]))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("kind", ["latent", "ddt"])
def test_the_baselines_losses_are_the_velocity_errors_of_their_spaces(tiny_transformer, kind):
    data = batch()
    torch.manual_seed(0)
    subspace = Subspace(torch.linalg.qr(torch.randn(768, 128)).Q, 1.7, "channel_first", RELEASED, {})
    sigma = data.sigma[:, None, None]
    if kind == "latent":
        model = LatentFlux2.from_latent(tiny_transformer(8), subspace)
        noise = patchify(data.noise, 16) @ subspace.A
        z_t = (1 - sigma) * data.z_0 + sigma * noise
        error = noise - data.z_0 - model(z_t, data.sigma, data.text, data.text_mask, grid=(2, 3))
    else:
        model = DdtFlux2.from_latent(tiny_transformer(8), subspace, heads=2, head_width=16)
        x_0 = RELEASED.encode(data.images)
        x_t = (1 - sigma[..., None]) * x_0 + sigma[..., None] * data.noise
        error = data.noise - x_0 - model(x_t, data.sigma, data.text, data.text_mask)
    loss, terms = Objective(model, Loss(kind="flow_matching"))(data)
    assert torch.isclose(loss, error.square().mean(), rtol=1e-5)
    assert terms.keys() == {"loss"}


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
