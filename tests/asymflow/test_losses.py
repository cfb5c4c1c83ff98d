from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from asymflow.losses import (
    asymmetric_loss,
    flow_matching_loss,
    omega,
    perceptual_loss,
    repa_loss,
    total_loss,
    vr_lambda,
    vr_loss,
)
from asymflow.parameterization import interpolate, lift, recover_u, x_0_from_u
from asymflow.patches import patchify, unpatchify

ORACLES = Path(__file__).parents[1] / "data/oracles"


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def reference(name):
    """Reference values, and the arguments of vr_loss made from them in float64."""
    r = {key: value.double() for key, value in load_file(ORACLES / f"{name}.safetensors").items()}
    height, width = r["x_0"].shape[2:]
    low = unpatchify(lift(patchify(r["z_0"], 2), r["A"], r["s"]), height, width, 16)
    x_t, x_t_low = (interpolate(x, r["noise"], r["sigma"]) for x in (r["x_0"], low))
    hats = x_0_from_u(r["u_hat"], x_t, r["sigma"]), x_0_from_u(r["u_low_hat"], x_t_low, r["sigma"])
    tokens = [patchify(images, 16) for images in (r["x_0"], hats[0], low, hats[1])]
    return r, low, tokens


@pytest.mark.parametrize("name", ["vr_loss", "vr_loss_no_fade"])
def test_vr_loss_matches_reference_values(name):
    r, low, tokens = reference(name)
    assert (low - r["x_0_low"]).abs().max() < 1e-5 * low.abs().max()
    settings = {"kappa": float(r["kappa"]), "sigma_floor": float(r["sigma_min"])}
    assert torch.allclose(omega(r["sigma"], settings["kappa"]), r["omega"], rtol=1e-5)
    loss, lam = vr_loss(*tokens, r["sigma"], **settings)
    assert (lam.squeeze(-1) - r["lambda_patch"]).abs().max() < 1e-5
    assert float(loss) == pytest.approx(float(r["loss_patch"]), rel=1e-5)
    loss, lam = vr_loss(*tokens, r["sigma"], granularity="patch_channel", **settings)
    assert float(loss) == pytest.approx(float(r["loss_patch_channel"]), rel=1e-5)
    assert float(lam.mean()) == pytest.approx(float(r["mean_lambda_patch_channel"]), rel=1e-5)


def test_flow_matching_loss():
    u, u_hat = double(4, 5, 6), double(4, 5, 6)
    assert torch.allclose(flow_matching_loss(u, u_hat), (u - u_hat).pow(2).mean())
    each = flow_matching_loss(u, u_hat, reduction="none")
    assert each.shape == (4,)
    assert torch.allclose(each.mean(), flow_matching_loss(u, u_hat))
    with pytest.raises(ValueError, match="'sum'; allowed: mean, none"):
        flow_matching_loss(u, u_hat, reduction="sum")


def test_omega():
    sigma = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)
    assert torch.allclose(omega(sigma, 0.3), torch.tensor([1, 0.36 / (0.36 + 0.12**2), 0], dtype=torch.float64))
    for kappa in (None, -1.0):
        assert not omega(sigma, kappa).any()
    assert torch.equal(omega(sigma, 0.0), torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64))


@pytest.mark.parametrize("granularity", ["patch", "patch_channel"])
def test_lambda_is_optimal(granularity):
    d_low = double(2, 4, 12)
    d = 0.5 * d_low + 0.2 * double(2, 4, 12)  # inside (0, 1), so that the clamp is idle
    lam = vr_lambda(d, d_low, granularity)
    groups = 1 if granularity == "patch" else 3
    assert lam.shape == (2, 4, groups)
    assert (0 < lam).all()
    assert (lam < 1).all()

    def residual(weights):
        return (d.unflatten(-1, (groups, -1)) - weights.unsqueeze(-1) * d_low.unflatten(-1, (groups, -1))).square()

    best = residual(lam).sum(-1)
    for change in (-1e-3, 1e-3, 0.3):
        assert (residual(lam + change).sum(-1) > best).all()
    free = lam.clone().requires_grad_(True)
    assert torch.autograd.grad(residual(free).sum(), free)[0].abs().max() < 1e-12


def test_lambda_is_clamped_and_safe():
    d = double(1, 2, 6)
    assert torch.equal(vr_lambda(3 * d, d), torch.ones(1, 2, 1, dtype=torch.float64))
    assert torch.equal(vr_lambda(-d, d), torch.zeros(1, 2, 1, dtype=torch.float64))
    assert torch.equal(vr_lambda(d, 0 * d), torch.zeros(1, 2, 1, dtype=torch.float64))
    with pytest.raises(ValueError, match="'pixel'; allowed: patch, patch_channel"):
        vr_lambda(d, d, "pixel")
    with pytest.raises(ValueError, match="divisible by 3"):
        vr_lambda(d[..., :5], d[..., :5], "patch_channel")


def test_lambda_by_channel_is_damped_where_the_teacher_is_exact():
    d_low = torch.full((1, 1, 6), 1e-3, dtype=torch.float64)
    assert torch.allclose(vr_lambda(d_low, d_low), torch.ones(1, 1, 1, dtype=torch.float64))
    expected = torch.full((1, 1, 3), 1e-2, dtype=torch.float64)
    assert torch.allclose(vr_lambda(d_low, d_low, "patch_channel"), expected)


def test_channel_groups_follow_the_channel_first_packing():
    images, low = double(1, 3, 8, 8), double(1, 3, 8, 8)
    lam = vr_lambda(patchify(images, 4), patchify(low, 4), "patch_channel")
    patch = (slice(None), slice(4, 8), slice(0, 4))  # third patch: second row, first column
    expected = (images[0][patch] * low[0][patch]).sum((1, 2)) / low[0][patch].square().sum((1, 2))
    assert torch.allclose(lam[0, 2], expected.clamp(0, 1))


def test_vr_loss_gradient_flows_to_the_student_alone():
    tensors = [double(2, 3, 6).requires_grad_(True) for _ in range(4)]
    sigma = torch.tensor([0.01, 0.7], dtype=torch.float64)
    loss, lam = vr_loss(*tensors, sigma)
    loss.backward()
    x_0, x_0_hat, x_0_low, x_0_low_hat = tensors
    assert not lam.requires_grad
    assert x_0_low.grad is None
    assert x_0_low_hat.grad is None
    # The gradient of a fixed target: -2 residual / sigma^2 / count, with the floor on sigma.
    weights = ((1 - omega(sigma)).view(-1, 1, 1) * lam) * (x_0_low - x_0_low_hat).detach()
    residual = (x_0 - x_0_hat).detach() - weights
    expected = -2 * residual / torch.tensor([0.05, 0.7], dtype=torch.float64).view(-1, 1, 1) ** 2 / residual.numel()
    assert torch.allclose(x_0_hat.grad, expected)


def test_vr_loss_without_teacher_residual_is_flow_matching():
    x_0, x_0_hat, low = double(3, 2, 6), double(3, 2, 6), double(3, 2, 6)
    sigma = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    loss, _ = vr_loss(x_0, x_0_hat, low, low, sigma)
    velocities = (x / sigma.view(-1, 1, 1) for x in (x_0, x_0_hat))
    assert torch.allclose(loss, flow_matching_loss(*velocities))
    each, _ = vr_loss(x_0, x_0_hat, low, low, sigma, reduction="none")
    assert each.shape == (3,)
    assert torch.allclose(each.mean(), loss)


def gaussian_toy():
    """x_0, x_0_low, noise as rows of coefficients of independent standard normals, and E[x_0_low | x_t],
    exactly.

    For jointly Gaussian variables the conditional mean given x_t is the orthogonal projection on x_t's row.
    """
    x_0, x_0_low, noise = double(6), double(6), torch.zeros(6, dtype=torch.float64)
    x_0[5], x_0_low[5], noise[5] = 0, 0, 1
    sigma = 0.6
    x_t = (1 - sigma) * x_0 + sigma * noise

    def given_x_t(row):
        return (row @ x_t) / (x_t @ x_t) * x_t

    return x_0, x_0_low, x_t, given_x_t


def test_control_variate_has_no_conditional_mean():
    _, x_0_low, x_t, given_x_t = gaussian_toy()
    control = x_0_low - given_x_t(x_0_low)
    assert given_x_t(control).abs().max() < 1e-12
    # By sampling as well: uncorrelated with functions of x_t, to within the error of 200,000 samples.
    normal = double(200_000, 6)
    values, seen = normal @ control, normal @ x_t
    for function in (torch.ones_like(seen), seen, seen.square(), seen.sign()):
        product = values * function
        assert abs(float(product.mean() / product.std())) * 200_000**0.5 < 4


def test_control_variate_keeps_the_target_and_lowers_its_variance():
    x_0, x_0_low, _, given_x_t = gaussian_toy()
    control = x_0_low - given_x_t(x_0_low)
    for lam in (-1.0, 0.3, 1.0, 2.0):
        assert torch.allclose(given_x_t(x_0 - lam * control), given_x_t(x_0), atol=1e-12)
    d = x_0 - given_x_t(x_0)
    best = d @ control / (control @ control)
    assert (d - best * control).square().sum() < d.square().sum()


def test_perceptual_loss_by_hand():
    distance, sigma = (
        torch.rand(2, 1, 8, 12, dtype=torch.float64),
        torch.tensor([0.02, 0.5], dtype=torch.float64),
    )
    weight = omega(sigma, 0.3) / torch.tensor([0.05, 0.5], dtype=torch.float64) ** 2
    for channels in (1, 3):
        lam = torch.rand(2, 6, channels, dtype=torch.float64)
        expected = torch.zeros(2, dtype=torch.float64)
        for b in range(2):
            for n in range(6):
                row, column = 4 * (n // 3), 4 * (n % 3)
                gate = lam[b, n].square().mean().sqrt()
                expected[b] += weight[b] * gate * distance[b, 0, row : row + 4, column : column + 4].sum() / 96
        each = perceptual_loss(distance, lam, sigma, patch_size=4, reduction="none")
        assert torch.allclose(each, expected)
        assert torch.allclose(perceptual_loss(distance, lam, sigma, patch_size=4), expected.mean())
    assert float(perceptual_loss(distance, lam, sigma, kappa=-1, patch_size=4)) == 0
    with pytest.raises(ValueError, match="do not fit patch_size 2"):
        perceptual_loss(distance, lam, sigma, patch_size=2)


def test_total_loss():
    assert float(total_loss(torch.tensor(2.0), torch.tensor(3.0), 0.2, 5.0)) == pytest.approx(13.0)


def test_repa_loss():
    features = double(2, 4, 8)
    assert float(repa_loss(features, 3 * features)) == pytest.approx(0, abs=1e-12)
    assert float(repa_loss(features, -features)) == pytest.approx(2)
    assert repa_loss(features, double(2, 4, 8), reduction="none").shape == (2,)


@pytest.mark.parametrize("rank", [0, 5, 48])
def test_asymmetric_loss_is_that_of_the_recovered_velocities(rank):
    """Between any two predictions, wherever they are recovered from the same x_t; A's own rank at both ends."""
    A = torch.linalg.qr(double(48, 48)).Q[:, :rank]
    u_a, u_a_hat, x_t = double(3, 4, 48), double(3, 4, 48), double(3, 4, 48)
    sigma = torch.tensor([0.01, 0.3, 1.0], dtype=torch.float64)
    u, u_hat = (recover_u(v, x_t, sigma, A, sigma_floor=5e-2) for v in (u_a, u_a_hat))
    each = asymmetric_loss(u_a, u_a_hat, sigma, A, reduction="none")
    torch.testing.assert_close(each, (u - u_hat).square().mean((1, 2)))
    torch.testing.assert_close(asymmetric_loss(u_a, u_a_hat, sigma, A), each.mean())
    plain = (u_a - u_a_hat).square().mean((1, 2))
    if rank == 0:  # JiT's loss
        torch.testing.assert_close(each, plain / sigma.clamp_min(5e-2).square())
    if rank == 48:
        torch.testing.assert_close(each, plain)
