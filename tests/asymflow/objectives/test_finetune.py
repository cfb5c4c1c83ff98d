"""Against the equations, on plain tensors; and the loop that the documentation shows."""

import re
from pathlib import Path

import pytest
import torch

from asymflow.losses import perceptual_loss, vr_loss
from asymflow.models.ddt import DdtFlux2
from asymflow.models.flux2 import LatentFlux2, PixelFlux2
from asymflow.objectives import FinetuneObjective
from asymflow.oklab import RELEASED
from asymflow.patches import patchify
from asymflow.subspace import Subspace


@pytest.fixture
def model(tiny_transformer) -> PixelFlux2:
    torch.manual_seed(0)
    A = torch.linalg.qr(torch.randn(768, 128)).Q
    model = PixelFlux2.from_latent(tiny_transformer(8), Subspace(A, 1.7, "channel_first", RELEASED, {}))
    model.add_lora(rank=2, dropout=0.0)
    return model


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return dict(
        images=torch.rand(3, 3, 32, 48, generator=generator) * 2 - 1,
        z_0=torch.randn(3, 6, 128, generator=generator),
        text=torch.randn(3, 4, 8, generator=generator),
        text_mask=torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]).bool(),
        noise=torch.randn(3, 3, 32, 48, generator=generator),
        sigma=torch.tensor([0.02, 0.4, 0.9]),
    )


def distance(a, b):
    """A distance per pixel: any will do."""
    return (a - b).square().mean(1, keepdim=True)


def velocity_of(model, data):
    """(x_0, x_t, sigma, u_hat) in normalised Oklab."""
    x_0, sigma = RELEASED.encode(data["images"]), data["sigma"][:, None, None, None]
    x_t = (1 - sigma) * x_0 + sigma * data["noise"]
    return x_0, x_t, sigma, model(x_t, data["sigma"], data["text"], data["text_mask"])


def test_flow_matching_is_the_squared_velocity_error(model):
    data = batch()
    loss, terms = FinetuneObjective(model, "flow_matching", loss_scale=5.0)(**data)
    x_0, *_, u_hat = velocity_of(model, data)
    assert torch.isclose(loss, 5 * (data["noise"] - x_0 - u_hat).square().mean(), rtol=1e-5)
    assert terms["loss"].shape == (3,)


def test_padding_samples_have_no_weight(model):
    """A batch of two images with a third of weight 0: the loss and its gradient are those of the two."""
    loss_of = FinetuneObjective(model, "flow_matching")
    data = batch()
    gradients = []
    two = {name: value[:2] for name, value in data.items()}
    for part in (two, {**data, "weight": torch.tensor([1.5, 1.5, 0.0])}):
        model.zero_grad()
        loss_of(**part)[0].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.trainable().values()]))
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6 * float(gradients[0].abs().max()))


@pytest.mark.parametrize("kind", ["latent", "ddt"])
def test_the_baselines_losses_are_the_velocity_errors_of_their_spaces(tiny_transformer, kind):
    data = batch()
    torch.manual_seed(0)
    subspace = Subspace(torch.linalg.qr(torch.randn(768, 128)).Q, 1.7, "channel_first", RELEASED, {})
    if kind == "latent":
        model, sigma = LatentFlux2.from_latent(tiny_transformer(8), subspace), data["sigma"][:, None, None]
        noise = patchify(data["noise"], 16) @ subspace.A
        z_t = (1 - sigma) * data["z_0"] + sigma * noise
        error = noise - data["z_0"] - model(z_t, data["sigma"], data["text"], data["text_mask"], grid=(2, 3))
    else:
        model = DdtFlux2.from_latent(tiny_transformer(8), subspace, heads=2, head_width=16)
        x_0, *_, u_hat = velocity_of(model, data)
        error = data["noise"] - x_0 - u_hat
    loss, terms = FinetuneObjective(model, "flow_matching")(**data)
    assert torch.isclose(loss, error.square().mean(), rtol=1e-5)
    assert terms.keys() == {"loss"}


@pytest.mark.parametrize("granularity", ["patch", "patch_channel"])
def test_the_variance_reduced_loss_is_that_of_the_equations(model, granularity):
    data = batch()
    loss, terms = FinetuneObjective(model, perceptual=distance, granularity=granularity)(**data)
    x_0, x_t, sigma, u_hat = velocity_of(model, data)
    x_0_hat = x_t - sigma * u_hat
    x_0_low_hat = model.teacher_x_0_low(
        data["z_0"], patchify(data["noise"], 16), data["sigma"], data["text"], (2, 3), data["text_mask"]
    )
    x_0_low = model.s * data["z_0"] @ model.A.mT
    tokens = [patchify(x, 16) for x in (x_0, x_0_hat)]
    vr, lam = vr_loss(*tokens, x_0_low, x_0_low_hat, data["sigma"], granularity=granularity)
    expected = vr + 0.2 * perceptual_loss(distance(RELEASED.decode(x_0_hat), data["images"]), lam, data["sigma"])
    assert torch.isclose(loss, expected, rtol=1e-4)
    assert torch.isclose(terms["lambda"].mean(), lam.mean(), rtol=1e-4)
    assert terms.keys() == {"loss", "variance_reduced", "lambda", "omega", "perceptual"}
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.trainable().values())
    frozen = [p for p in model.parameters() if not p.requires_grad]
    assert frozen
    assert all(p.grad is None for p in frozen)


def test_student_and_teacher_see_the_references(model):
    data, generator = batch(), torch.Generator().manual_seed(2)
    references = torch.rand(3, 1, 3, 32, 48, generator=generator) * 2 - 1
    reference_latents = torch.randn(3, 1, 6, 128, generator=generator)
    loss, terms = FinetuneObjective(model)(**data, references=references, reference_latents=reference_latents)
    x_0, x_t, sigma, _ = velocity_of(model, data)
    clean = RELEASED.encode(references[:, 0])[:, None]
    x_0_hat = x_t - sigma * model(x_t, data["sigma"], data["text"], data["text_mask"], clean)
    x_0_low_hat = model.teacher_x_0_low(
        data["z_0"], patchify(data["noise"], 16), data["sigma"], data["text"], (2, 3), data["text_mask"],
        reference_latents,
    )  # fmt: skip
    low = model.s * data["z_0"] @ model.A.mT, x_0_low_hat
    vr, _ = vr_loss(patchify(x_0, 16), patchify(x_0_hat, 16), *low, data["sigma"])
    assert torch.isclose(loss, vr, rtol=1e-4)
    for changed in ({"references": -references}, {"reference_latents": -reference_latents}):
        given = {"references": references, "reference_latents": reference_latents, **changed}
        assert FinetuneObjective(model)(**data, **given)[0] != loss


def test_a_latent_model_sees_the_latents_of_the_references(tiny_transformer):
    subspace = Subspace(torch.eye(768, 128), 1.7, "channel_first", RELEASED, {})
    model, data = LatentFlux2.from_latent(tiny_transformer(8), subspace), batch()
    references = torch.randn(3, 2, 6, 128, generator=torch.Generator().manual_seed(2))
    loss, _ = FinetuneObjective(model, "flow_matching")(**data, reference_latents=references)
    sigma, noise = data["sigma"][:, None, None], patchify(data["noise"], 16) @ subspace.A
    z_t = (1 - sigma) * data["z_0"] + sigma * noise
    u_hat = model(z_t, data["sigma"], data["text"], data["text_mask"], (2, 3), references)
    assert torch.isclose(loss, (noise - data["z_0"] - u_hat).square().mean(), rtol=1e-5)


def test_variance_reduction_of_a_latent_model_is_refused(tiny_transformer):
    subspace = Subspace(torch.eye(768, 128), 1.7, "channel_first", RELEASED, {})
    with pytest.raises(ValueError, match="kind is 'variance_reduced'; a latent model is trained with 'flow_matching'"):
        FinetuneObjective(LatentFlux2.from_latent(tiny_transformer(8), subspace))


def test_the_perceptual_network_is_not_a_part_of_the_trained_module(model):
    network = torch.nn.Conv2d(3, 1, 1)
    objective = FinetuneObjective(model, perceptual=lambda a, b: network(a - b))
    assert all(name.startswith("model.") for name, _ in objective.named_parameters())
    objective = FinetuneObjective(model, perceptual=network)
    assert all(name.startswith("model.") for name, _ in objective.named_parameters())


MATHS = Path(__file__).parents[3] / "docs/maths.md"


def test_the_loop_of_the_documentation_trains(tiny_transformer):
    """The very text of docs/maths.md, of at most ten lines but for its imports, on tiny parts."""
    blocks = re.findall(r"(?:^(?:    .*)?\n)+", MATHS.read_text(), re.MULTILINE)
    (text,) = (block for block in blocks if "for images, z_0, text in batches:" in block)
    lines = [line[4:] for line in text.splitlines() if line.strip()]
    assert len([line for line in lines if not line.startswith(("import", "from"))]) <= 10
    torch.manual_seed(0)
    subspace = Subspace(torch.linalg.qr(torch.randn(768, 128)).Q, 1.7, "channel_first", RELEASED, {})
    data = batch()
    given = {
        "transformer": tiny_transformer(8),
        "subspace": subspace,
        "distance": distance,
        "batches": 4 * [(data["images"], data["z_0"], data["text"])],
    }
    exec("\n".join(lines), given)
    model, loss = given["model"], given["loss"]
    start = PixelFlux2.from_latent(tiny_transformer(8), subspace)
    assert torch.isfinite(loss)
    assert not torch.equal(model.transformer.proj_out.weight, start.transformer.proj_out.weight)
