from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from asymflow.parameterization import (
    calibrated_velocity,
    interpolate,
    lift,
    recover_u,
    target_u_a,
    target_u_a_cal,
    teacher_x_0_low_hat,
    u_from_x_0,
    x_0_from_u,
)
from asymflow.schedule import calibrate
from asymflow.subspace import project

ORACLES = Path(__file__).parents[1] / "data/oracles"
B, N, D = 3, 5, 24


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def sample(rank):
    """Random x_0, noise, sigma, x_t, A."""
    A = torch.linalg.qr(double(D, D)).Q[:, :rank]
    x_0, noise, sigma = double(B, N, D), double(B, N, D), torch.tensor([1e-3, 0.4, 1.0], dtype=torch.float64)
    return x_0, noise, sigma, interpolate(x_0, noise, sigma), A


def four_projections(u_a, x_t, sigma, A, s):
    """Eq. 17 as it is printed."""
    sigma = sigma.view(-1, 1, 1)
    k = 1 / (s * (1 - sigma) + sigma)
    inside, outside = s * k * u_a + (1 - s * k) * x_t / sigma, (x_t + s * u_a) / sigma
    return project(inside, A) + outside - project(outside, A)


def test_velocity_and_clean_data():
    x_0, noise, sigma, x_t, _ = sample(4)
    u = u_from_x_0(x_0, x_t, sigma)
    assert torch.allclose(u, noise - x_0, atol=1e-9)
    assert torch.allclose(x_0_from_u(u, x_t, sigma), x_0, atol=1e-12)
    floored = u_from_x_0(x_0, x_t, sigma, sigma_floor=0.5)
    assert torch.allclose(floored[0], (x_t - x_0)[0] / 0.5)
    assert torch.equal(floored[2], u[2])


@pytest.mark.parametrize("rank", [0, 7, D])
def test_target_components(rank):
    x_0, noise, _, _, A = sample(rank)
    u, u_a = noise - x_0, target_u_a(x_0, noise, A)
    assert torch.allclose(u_a, noise @ A @ A.T - x_0, atol=1e-12)
    assert torch.allclose(project(u_a, A), project(u, A), atol=1e-12)
    assert torch.allclose(u_a - project(u_a, A), -(x_0 - project(x_0, A)), atol=1e-12)


def test_endpoint_ranks():
    x_0, noise, _, _, A = sample(D)
    assert torch.equal(target_u_a(x_0, noise, A[:, :0]), -x_0)
    assert torch.allclose(target_u_a(x_0, noise, A), noise - x_0, atol=1e-12)


@pytest.mark.parametrize("rank", [0, 7, D])
def test_recovery_is_exact_uncalibrated(rank):
    x_0, noise, sigma, x_t, A = sample(rank)
    u = recover_u(target_u_a(x_0, noise, A), x_t, sigma, A)
    assert torch.allclose(u, noise - x_0, atol=1e-8)


@pytest.mark.parametrize("rank", [0, 7, D])
@pytest.mark.parametrize("s", [0.3, 1.7])
def test_recovery_is_exact_calibrated(rank, s):
    x_0, noise, sigma, x_t, A = sample(rank)
    u_a_cal = target_u_a_cal(x_0, noise, A, s)
    assert torch.allclose(u_a_cal, target_u_a(x_0, noise, A) + (1 - 1 / s) * x_0, atol=1e-12)
    assert torch.allclose(recover_u(u_a_cal, x_t, sigma, A, s), noise - x_0, atol=1e-8)
    as_tensor = recover_u(u_a_cal, x_t, sigma, A, torch.tensor(s, dtype=torch.float64))
    assert torch.allclose(as_tensor, noise - x_0, atol=1e-8)


@pytest.mark.parametrize("s", [1.0, 0.6, 1.7])
def test_calibrated_target_gives_the_velocity(s):
    x_0, noise, sigma, x_t, A = sample(7)
    u = calibrated_velocity(lambda scaled, tau: target_u_a_cal(x_0, noise, A, s), x_t, sigma, A, s)
    assert torch.allclose(u, noise - x_0, atol=1e-8)


@pytest.mark.parametrize("s", [0.3, 1.0])
def test_recovery_equals_the_printed_form(s):
    # For a prediction, too, not only for the exact target.
    _, _, sigma, x_t, A = sample(7)
    u_hat = double(B, N, D)
    expected = four_projections(u_hat, x_t, sigma, A, s)
    assert torch.allclose(recover_u(u_hat, x_t, sigma, A, s), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["velocity", "velocity_small", "velocity_rank0", "velocity_full_rank"])
def test_recovery_matches_reference_values(name):
    r = load_file(ORACLES / f"{name}.safetensors")
    u = recover_u(r["u_a_cal"], r["x_t"], r["sigma"], r["A"], float(r["s"]), float(r["sigma_min"]))
    assert u.dtype == torch.float32
    assert (u - r["u"]).abs().max() < 1e-5 * r["u"].abs().max()


def test_floor_acts_only_where_sigma_divides():
    _, _, sigma, x_t, A = sample(7)
    u_hat = double(B, N, D)
    u = recover_u(u_hat, x_t, sigma, A, 1.0, sigma_floor=0.5)
    # Inside the subspace there is no division for s = 1.
    assert torch.allclose(project(u, A), project(u_hat, A), atol=1e-9)
    outside = (x_t + u_hat) / sigma.clamp_min(0.5).view(-1, 1, 1)
    assert torch.allclose(u - project(u, A), outside - project(outside, A), atol=1e-9)


def test_recovery_keeps_precision_and_gradients():
    x_0, noise, sigma, x_t, A = sample(7)
    u_a = target_u_a_cal(x_0, noise, A, 0.8)
    u_a.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda u: recover_u(u, x_t[1:], sigma[1:], A, 0.8), (u_a[1:],))
    narrow = [t.detach().float() for t in (u_a, x_t, sigma, A)]
    plain = recover_u(*narrow, 0.8)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(recover_u(*narrow, 0.8), plain)
    half = recover_u(narrow[0].bfloat16(), narrow[1].bfloat16(), narrow[2], narrow[3], 0.8)
    assert half.dtype == torch.bfloat16
    assert recover_u(narrow[0].bfloat16(), *narrow[1:], 0.8).dtype == torch.float32
    with pytest.raises(ValueError, match="last dimension 24"):
        recover_u(u_a[..., :5], x_t[..., :5], sigma, A)


@pytest.mark.parametrize("s", [1.0, 0.6])
def test_projected_lifted_pixels_are_noisy_latents(s):
    _, noise, sigma, _, A = sample(7)
    z_0 = double(B, N, 7)
    x_t_low = interpolate(lift(z_0, A, s), noise, sigma)
    inputs = []
    calibrated_velocity(lambda *given: inputs.append(given) or given[0], x_t_low, sigma, A, s)
    ((scaled, tau),) = inputs
    z_tau = scaled @ A
    assert torch.allclose(tau, calibrate(sigma, s)[0])
    assert torch.allclose(z_tau, interpolate(z_0, noise @ A, tau), atol=1e-12)


@pytest.mark.parametrize("s", [1.0, 0.6])
def test_lifted_latent_velocity_recovers_low_rank_velocity(s):
    _, noise, sigma, _, A = sample(7)
    z_0 = double(B, N, 7)
    x_0_low = lift(z_0, A, s)
    x_t_low = interpolate(x_0_low, noise, sigma)
    lifted = (noise @ A - z_0) @ A.T
    assert torch.allclose(lifted, target_u_a_cal(x_0_low, noise, A, s), atol=1e-12)
    u_low = recover_u(lifted, x_t_low, sigma, A, s)
    assert torch.allclose(u_low, noise - x_0_low, atol=1e-8)
    if s == 1:
        # The simplified form, valid since the lifted prediction has no part outside the subspace.
        outside = (x_t_low - project(x_t_low, A)) / sigma.view(-1, 1, 1)
        assert torch.allclose(u_low, lifted + outside, atol=1e-8)


@pytest.mark.parametrize("s", [1.0, 0.6])
def test_teacher_needs_no_pixel_space(s):
    _, noise, sigma, _, A = sample(7)
    z_0, mix = double(B, N, 7), double(7, 7)
    x_t_low = interpolate(lift(z_0, A, s), noise, sigma)
    tau, _ = calibrate(sigma, s)
    z_tau = interpolate(z_0, noise @ A, tau)
    u_z_hat = torch.tanh(z_tau @ mix) + tau.view(-1, 1, 1)  # any teacher
    x_0_low_hat = teacher_x_0_low_hat(u_z_hat, z_tau, tau, A, s)
    # The same through the pixel-space velocity of the lifted model.
    u_low_hat = recover_u(u_z_hat @ A.T, x_t_low, sigma, A, s)
    assert torch.allclose(x_0_low_hat, x_0_from_u(u_low_hat, x_t_low, sigma), atol=1e-10)
    z_0_hat = x_0_from_u(u_z_hat, z_tau, tau)
    assert torch.allclose(lift(z_0, A, s) - x_0_low_hat, lift(z_0 - z_0_hat, A, s), atol=1e-12)
    if s == 1:
        printed = project(x_t_low, A) - sigma.view(-1, 1, 1) * (u_z_hat @ A.T)
        assert torch.allclose(x_0_low_hat, printed, atol=1e-12)
