import pytest
import torch

from asymflow.models.ddt import DdtFlux2
from asymflow.models.flux2 import run_transformer
from asymflow.oklab import RELEASED
from asymflow.patches import patchify
from asymflow.schedule import calibrate
from asymflow.subspace import Subspace


@pytest.fixture
def make(tiny_transformer):
    def make_model(**options) -> DdtFlux2:
        torch.manual_seed(0)
        A = torch.linalg.qr(torch.randn(768, 128)).Q
        subspace = Subspace(A, 1.7, "channel_first", RELEASED, {})
        options = {"blocks": 2, "heads": 2, "head_width": 16, **options}
        return DdtFlux2.from_latent(tiny_transformer(8), subspace, **options)

    return make_model


@pytest.fixture
def inputs() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    x_t = torch.randn(2, 3, 32, 48, generator=generator)
    return x_t, torch.tensor([0.3, 0.9]), torch.randn(2, 5, 8, generator=generator)


def stir(model: DdtFlux2) -> None:
    """Away from the zeros of the start."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def test_the_first_features_are_the_latent_models_own(make, tiny_transformer, inputs):
    x_t, sigma, text = inputs
    model, latent = make(), tiny_transformer(8)
    seen = {}
    model.head.register_forward_pre_hook(lambda _, args: seen.update(tokens=args[0], features=args[1]))
    latent.norm_out.register_forward_hook(lambda *args: seen.update(expected=args[2]))
    with torch.no_grad():
        model(x_t, sigma, text)
        tokens = patchify(x_t, 16)
        tau, k = calibrate(sigma, model.s)
        z_tau = (k[:, None, None] * tokens) @ model.A
        run_transformer(latent, z_tau, tau, text, (2, 3))
    assert torch.equal(seen["tokens"], tokens)
    assert (seen["features"] - seen["expected"]).abs().max() <= 1e-5 * seen["expected"].abs().max()


def test_the_first_velocity_is_zero_and_gradients_reach_everything_by_the_third_step(make, inputs):
    model = make()
    model.add_lora(rank=2, dropout=0.0)
    assert torch.equal(model(*inputs), torch.zeros(2, 3, 32, 48))
    target = torch.randn(2, 3, 32, 48)
    reached = []
    optimizer = torch.optim.Adam(model.trainable().values(), lr=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        (model(*inputs) - target).square().mean().backward()
        reached.append({name for name, p in model.trainable().items() if p.grad.any()})
        optimizer.step()
    assert reached[0] == {"head.proj_out.weight", "head.proj_out.bias"}
    assert reached[1] - reached[0] >= {"head.embed.weight", "head.modulation_out.weight"}
    assert model.trainable().keys() - reached[2] == {name for name in model.trainable() if "lora_A" in name}


def test_a_head_learns_a_velocity_that_its_backbone_cannot_know(make, inputs):
    """Pixels outside the subspace are invisible to the fused first layer; the head sees them."""
    model = make()
    stir(model)
    x_t, sigma, text = inputs
    tokens = patchify(x_t, 16)
    outside = torch.randn_like(tokens)
    outside -= outside @ model.A @ model.A.T
    with torch.no_grad():
        difference = model.head(tokens + outside, torch.zeros(2, 6, 32), (2, 3)) - model.head(
            tokens, torch.zeros(2, 6, 32), (2, 3)
        )
    assert difference.abs().max() > 1e-3


def test_each_patch_is_modulated_by_its_own_features(make):
    model = make(blocks=0)  # without attention, so that patches cannot hear each other
    stir(model)
    tokens, features = torch.randn(1, 6, 768), torch.randn(1, 6, 32)
    other = features.clone()
    other[:, 2] += 1
    with torch.no_grad():
        changed = (model.head(tokens, features, (2, 3)) != model.head(tokens, other, (2, 3))).any(-1)
    assert changed.tolist() == [[False, False, True, False, False, False]]


def test_blocks_know_where_a_patch_is(make):
    model = make()
    stir(model)
    tokens, features = torch.randn(1, 6, 768), torch.randn(1, 6, 32)
    with torch.no_grad():
        wide, tall = (model.head(tokens, features, grid) for grid in ((2, 3), (3, 2)))
    assert not torch.allclose(wide, tall)


def test_the_layout_is_that_of_the_subspace(make, inputs):
    model = make()
    stir(model)
    order = patchify(torch.arange(768.0).view(1, 3, 16, 16), 16, "channel_last").flatten().long()
    with torch.no_grad():
        expected = model(*inputs)
        object.__setattr__(model.subspace, "layout", "channel_last")
        for weight in (model.transformer.x_embedder.weight, model.head.embed.weight):
            weight.copy_(weight[:, order])
        for parameter in model.head.proj_out.parameters():
            parameter.copy_(parameter[order])
        torch.testing.assert_close(model(*inputs), expected)


def test_an_odd_head_width_is_refused(make):
    with pytest.raises(ValueError, match="multiple of 8"):
        make(head_width=12)
