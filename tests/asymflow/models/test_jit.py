"""The network against closed forms, and the rank family against plain x_0- and u-prediction, in float64."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from asymflow.guidance import Guidance, guided
from asymflow.losses import asymmetric_loss
from asymflow.models import jit
from asymflow.models.jit import JiT, JiTConfig, PixelJiT
from asymflow.oklab import RELEASED
from asymflow.parameterization import interpolate, target_u_a
from asymflow.patches import patchify, unpatchify
from asymflow.samplers import heun
from asymflow.srgb import SrgbSpace
from asymflow.subspace import Subspace, random_basis

TINY = JiTConfig(
    width=24, depth=4, heads=2, bottleneck=20, context_from=1, context_tokens=3, patch_size=4, classes=5
)  # fmt: skip
D, GRID = 48, (2, 3)


def subspace(A, **other):
    options = {"s": 1.0, "layout": "channel_last", "space": SrgbSpace(), **other}
    return Subspace(A, options["s"], options["layout"], options["space"])


def model_of(rank, seed=0, config=TINY, **options):
    """In float64, with every weight random: the zeros that training begins with would hide what is wrong."""
    torch.manual_seed(seed)
    A = torch.eye(D) if rank == D else random_basis(D, rank).float()
    model = PixelJiT(config, subspace(A), **options).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.A = torch.eye(D).double() if rank == D else random_basis(D, rank)
    return model


def batch(seed=1, pictures=3):
    generator = torch.Generator().manual_seed(seed)
    x_0 = torch.rand(pictures, 3, 8, 12, generator=generator, dtype=torch.float64) * 2 - 1
    noise = torch.randn(x_0.shape, generator=generator, dtype=torch.float64)
    sigma = torch.tensor([0.02, 0.4, 0.97], dtype=torch.float64)[:pictures]
    return x_0, noise, sigma, torch.tensor([0, 4, 5])[:pictures]


def loss_of_ours(model, x_0, noise, sigma, labels):
    tokens, e = (patchify(x, 4, "channel_last") for x in (x_0, noise))
    u_a_hat, _ = model.predict(interpolate(tokens, e, sigma), sigma, labels, GRID)
    return asymmetric_loss(target_u_a(tokens, e, model.A), u_a_hat, sigma, model.A, sigma_floor=5e-2)


def plain_network(model, x_t, sigma, labels):
    """The network's answer as an image, without anything of ours around it."""
    answer, _ = model.network(patchify(x_t, 4, "channel_last"), 1 - sigma, labels, GRID)
    return unpatchify(answer, 8, 12, 4, layout="channel_last")


def x_0_prediction(model, x_t, sigma, labels, floor):
    """JiT: the network says x_0, up to the sign of its last layer (Eq. 31)."""
    x_0_hat = -plain_network(model, x_t, sigma, labels)
    return (x_t - x_0_hat) / sigma.clamp_min(floor)[:, None, None, None]


def u_prediction(model, x_t, sigma, labels, floor):
    return plain_network(model, x_t, sigma, labels)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize(("rank", "plain"), [(0, x_0_prediction), (D, u_prediction)])
def test_the_ends_of_the_family_are_plain_predictions_in_loss_gradients_and_samples(rank, plain):
    model = model_of(rank)
    x_0, noise, sigma, labels = batch()
    x_t = interpolate(x_0, noise, sigma)
    u_hat = plain(model, x_t, sigma, labels, 5e-2)
    # JiT floors sigma in its target as in its prediction; u itself needs no floor
    floored = (x_t - x_0) / sigma.clamp_min(5e-2)[:, None, None, None]
    expected = (u_hat - (floored if rank == 0 else noise - x_0)).square().mean()
    ours = loss_of_ours(model, x_0, noise, sigma, labels)
    assert float(ours) == pytest.approx(float(expected), rel=1e-10)
    torch.testing.assert_close(gradients(model, ours), gradients(model, expected), rtol=1e-8, atol=1e-10)

    guidance = Guidance(2.0, orthogonal=False, interval=(0.1, 0.9))
    for floor in (4e-2, 0.0):
        made = []
        for velocity in (lambda x, s, y, f: model(x, s, y, f), lambda x, s, y, f: plain(model, x, s, y, f)):
            with_class, without = (
                lambda x, s, y=y, v=velocity, f=floor: v(x, s, y, f) for y in (labels, torch.full_like(labels, 5))
            )
            made.append(heun(guided(with_class, without, guidance), noise, 6))
        torch.testing.assert_close(made[0], made[1], rtol=1e-8, atol=1e-8)


def test_between_them_the_loss_is_that_of_the_recovered_velocities():
    model = model_of(7)
    x_0, noise, sigma, labels = batch()
    sigma = sigma.clamp_min(5e-2)  # where no floor holds, the target is u itself
    u_hat = model(interpolate(x_0, noise, sigma), sigma, labels, sigma_floor=0.0)
    expected = (u_hat - (noise - x_0)).square().mean()
    assert float(loss_of_ours(model, x_0, noise, sigma, labels)) == pytest.approx(float(expected), rel=1e-9)


def test_initial_output_is_zero_and_the_bottleneck_holds_the_basis():
    A = random_basis(D, 6).float()
    model = PixelJiT(TINY, subspace(A))
    tokens = torch.randn(2, 6, D)
    answer, _ = model.predict(tokens, torch.tensor([0.3, 0.9]), torch.tensor([0, 5]), GRID)
    assert not answer.any()
    torch.testing.assert_close(model.network.to_bottleneck(tokens)[..., :6], tokens @ A)
    narrow = PixelJiT(TINY, subspace(torch.eye(D)))  # of a larger rank than the bottleneck as many as there are
    torch.testing.assert_close(narrow.network.to_bottleneck(tokens), tokens[..., : TINY.bottleneck])


def test_every_token_depends_on_position_class_and_time():
    network = model_of(0).network
    tokens = torch.randn(1, 1, D, dtype=torch.float64).expand(3, 6, D)
    t, labels = torch.tensor([0.2, 0.2, 0.7]).double(), torch.tensor([1, 2, 1])
    answer, _ = network(tokens, t, labels, GRID)
    assert not torch.allclose(answer[0, 0], answer[0, 1])
    assert not torch.allclose(answer[0, 0], answer[0, 3])
    assert not torch.allclose(answer[0], answer[1])
    assert not torch.allclose(answer[0], answer[2])


def test_class_tokens_come_in_at_their_block_and_leave_before_the_output():
    config = TINY
    seen = []
    network = model_of(0, config=config).network
    for block in network.blocks:
        block.register_forward_pre_hook(lambda module, args: seen.append((args[0].shape[1], args[2])))
    answer, features = network(
        torch.zeros(1, 6, D).double(), torch.zeros(1).double(), torch.zeros(1).long(), GRID, features_after=2
    )
    assert [tokens for tokens, _ in seen] == [6, 9, 9, 9]
    assert answer.shape == (1, 6, D)
    assert features.shape == (1, 6, config.width)
    cos, sin = seen[-1][1]
    assert (cos[:3] == 1).all()
    assert not sin[:3].any()
    no_context = JiTConfig(24, 2, 2, 20, context_from=0, context_tokens=0, patch_size=4)
    without = PixelJiT(no_context, subspace(torch.eye(D, 0)))
    assert without(torch.zeros(1, 3, 8, 12), torch.ones(1), torch.zeros(1).long()).shape == (1, 3, 8, 12)


def test_dropout_is_in_the_middle_half_alone():
    network = JiT(JiTConfig(width=8, depth=8, heads=1, bottleneck=4, context_from=2, dropout=0.3))
    rates = [(block.attention.dropout.p, block.mlp.dropout.p) for block in network.blocks]
    assert rates == [(0, 0)] * 2 + [(0.3, 0.3)] * 4 + [(0, 0)] * 2


@pytest.mark.parametrize("float32", [True, False])
def test_attention_in_float32_is_a_setting(float32, monkeypatch):
    types = []
    plain = F.scaled_dot_product_attention
    monkeypatch.setattr(jit.F, "scaled_dot_product_attention", lambda q, k, v: types.append(q.dtype) or plain(q, k, v))
    config = JiTConfig(
        width=8, depth=1, heads=1, bottleneck=4, context_from=0, patch_size=4, attention_float32=float32
    )  # fmt: skip
    model = PixelJiT(config, subspace(torch.eye(D, 0)))
    model.set_precision(torch.bfloat16)
    u = model(torch.randn(1, 3, 8, 8), torch.tensor([0.5]), torch.tensor([3]))
    assert types == [torch.float32 if float32 else torch.bfloat16]
    assert u.dtype == torch.float32


def test_checkpointing_changes_no_gradient():
    model = model_of(3).train()
    found = []
    for model.network.checkpointing in (False, True):
        found.append(gradients(model, loss_of_ours(model, *batch())))
    assert torch.equal(*found)


@pytest.mark.parametrize(
    "unfit",
    [subspace(torch.eye(D, 3), layout="channel_first"), subspace(torch.eye(D, 3), s=2.0), subspace(torch.eye(12, 3))],
)
def test_a_basis_that_does_not_fit_is_refused(unfit):
    with pytest.raises(ValueError, match="needed are 48 packed channel_last, scale 1"):
        PixelJiT(TINY, unfit)


def test_images_are_in_the_space_of_the_basis():
    model = PixelJiT(TINY, subspace(torch.eye(D, 2), space=RELEASED))
    assert model.subspace.space is RELEASED
    assert model.patch_size == 4


def test_projector_reads_its_blocks_output_and_is_trained():
    model = model_of(4)
    model.add_projector(block=2, features=10, width=16)
    model = model.double()
    x_0, noise, sigma, labels = batch()
    _, features = model.predict(patchify(x_0, 4, "channel_last"), sigma, labels, GRID)
    assert features.shape == (3, 6, 10)
    assert sum(isinstance(m, torch.nn.Linear) for m in model.projector) == 3
    features.sum().backward()
    touched = {name.split(".")[2] for name, p in model.named_parameters() if "blocks" in name and p.grad is not None}
    assert touched == {"0", "1"}


def in_float32(config=TINY):
    """As trained: weights in float32, each of them random."""
    torch.manual_seed(0)
    model = PixelJiT(config, subspace(random_basis(D, 4).float())).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def test_in_bfloat16_the_class_tokens_keep_all_tokens_in_float32():
    """From their block to the output, as in the published model; rounded to bfloat16 there, the error is larger."""
    config = replace(TINY, depth=16, width=48)  # deep enough for the roundings to add up
    model, generator = in_float32(config), torch.Generator().manual_seed(1)
    tokens, labels = torch.randn(64, 6, D, generator=generator), torch.arange(64) % 6
    sigma = torch.rand(64, generator=generator)

    def answer():
        with torch.no_grad():
            return model.predict(tokens, sigma, labels, GRID)[0]

    exact = answer()
    model.set_precision(torch.bfloat16)
    seen, error = [], {}
    hooks = [b.register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype)) for b in model.network.blocks]
    hooks.append(model.network.output.register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype)))
    error["float32"] = float((answer() - exact).square().mean())
    assert config.context_from == 1
    assert seen == [torch.bfloat16] + [torch.float32] * config.depth
    for hook in hooks:
        hook.remove()
    entered = model.network.blocks[config.context_from]
    entered.register_forward_pre_hook(lambda module, args: (args[0].bfloat16(), *args[1:]))
    error["bfloat16"] = float((answer() - exact).square().mean())
    assert error["float32"] < 0.9 * error["bfloat16"]


def test_in_bfloat16_the_projector_of_repa_computes_in_float32():
    model = in_float32()
    model.add_projector(block=2, features=10, width=16)
    model.set_precision(torch.bfloat16)
    seen = []
    for layer in model.projector:
        layer.register_forward_hook(lambda module, args, out: seen.append((args[0].dtype, out.dtype)))
    sigma, labels = torch.tensor([0.3, 0.9]), torch.tensor([0, 5])
    _, features = model.predict(torch.randn(2, 6, D), sigma, labels, GRID)
    assert features.dtype == torch.float32
    assert set(seen) == {(torch.float32, torch.float32)}
