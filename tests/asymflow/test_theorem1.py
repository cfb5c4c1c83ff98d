"""Theorem 1: the lifted pixel flow and the latent flow stay paired along the whole trajectory."""

import pytest
import torch

from asymflow.parameterization import calibrated_velocity, lift
from asymflow.samplers import euler
from asymflow.schedule import calibrate, sampling_sigmas
from asymflow.subspace import project

B, N, D, LATENT = 2, 3, 20, 6


def setting():
    torch.manual_seed(0)
    options = {"dtype": torch.float64}
    A = torch.linalg.qr(torch.randn(D, LATENT, **options)).Q
    first, second = torch.randn(N * LATENT, 32, **options) / 3, torch.randn(32, N * LATENT, **options) / 3

    def latent_model(z, tau):
        """A nonlinear network that mixes tokens and looks at the time."""
        hidden = torch.tanh(z.flatten(1) @ first + 3 * tau.view(-1, 1))
        return (hidden @ second).view_as(z) + 0.1 * z.square().sin()

    return A, latent_model, torch.randn(B, N, D, **options)


def lifted(latent_model, A, s):
    """The pixel velocity of the latent model: project, evaluate, lift, recover."""

    def velocity(x_t, sigma):
        return calibrated_velocity(lambda scaled, tau: lift(latent_model(scaled @ A, tau), A), x_t, sigma, A, s)

    return velocity


@pytest.mark.parametrize(("s", "shift"), [(1.0, 1.0), (1.0, 17.0), (0.6, 1.0), (1.9, 5.0)])
def test_euler_trajectories_stay_paired(s, shift):
    # One Euler step in sigma on pixels is one Euler step in tau on latents, exactly, since 1 / k is affine in
    # sigma and so tau' - tau = s k k' (sigma' - sigma). The grids are tau_i = tau(sigma_i), the pairing is x
    # = A z / k + sigma (I - P) noise, which for s = 1 is Eq. 40.
    A, latent_model, noise = setting()
    velocity = lifted(latent_model, A, s)
    outside = noise - project(noise, A)
    sigmas = sampling_sigmas(12, shift)
    taus, ks = calibrate(sigmas, s)
    x_t, z = noise, noise @ A
    for i in range(12):
        assert torch.allclose(x_t, z @ A.T / ks[i] + sigmas[i] * outside, atol=1e-10)
        x_t = x_t + (sigmas[i + 1] - sigmas[i]) * velocity(x_t, sigmas[i].expand(B))
        z = z + (taus[i + 1] - taus[i]) * latent_model(z, taus[i].expand(B))
    assert torch.allclose(x_t, lift(z, A, s), atol=1e-10)


def test_sampler_ends_at_the_lifted_latent_sample():
    A, latent_model, noise = setting()
    x_0 = euler(lifted(latent_model, A, 1.0), noise, steps=9, shift=3.0)
    z_0 = euler(latent_model, noise @ A, steps=9, shift=3.0)
    assert torch.allclose(x_0, lift(z_0, A), atol=1e-10)


def test_noise_splits_into_lifted_latent_noise_and_the_rest():
    A, _, noise = setting()
    outside = noise - project(noise, A)
    assert torch.allclose(lift(noise @ A, A) + outside, noise, atol=1e-12)
    assert (outside @ A).abs().max() < 1e-12


def test_candidate_trajectory_solves_the_lifted_flow():
    # Eqs. 43-47 pointwise: at A z + sigma noise_outside the lifted velocity is A G(z) + noise_outside.
    A, latent_model, noise = setting()
    outside = noise - project(noise, A)
    z, sigma = torch.randn(B, N, LATENT, dtype=torch.float64), torch.tensor([0.2, 0.8], dtype=torch.float64)
    candidate = lift(z, A) + sigma.view(-1, 1, 1) * outside
    assert torch.allclose(candidate @ A, z, atol=1e-12)
    assert torch.allclose(candidate - project(candidate, A), sigma.view(-1, 1, 1) * outside, atol=1e-12)
    velocity = lifted(latent_model, A, 1.0)(candidate, sigma)
    assert torch.allclose(velocity, lift(latent_model(z, sigma), A) + outside, atol=1e-10)
