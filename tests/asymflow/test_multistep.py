"""Multistep solvers by diffusers' schedulers: their order, and Theorem 1 against the scheduler on the latent model."""

import pytest
import torch
from diffusers import (
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    SASolverScheduler,
    UniPCMultistepScheduler,
    schedulers,
)

from asymflow.multistep import deis, dpmsolver, sasolver, unipc
from asymflow.parameterization import calibrated_velocity, lift
from asymflow.schedule import calibrate, expand_sigma, sampling_sigmas

B, N, D, LATENT = 2, 3, 20, 6
SDE = {"algorithm_type": "sde-dpmsolver++"}
NOISY = {"tau_func": lambda t: 0.6}
CASES = [
    (unipc, UniPCMultistepScheduler, {"solver_order": 3}),
    (dpmsolver, DPMSolverMultistepScheduler, {}),
    (dpmsolver, DPMSolverMultistepScheduler, SDE),
    (deis, DEISMultistepScheduler, {}),
    (deis, DEISMultistepScheduler, {"solver_order": 3}),
    (sasolver, SASolverScheduler, {}),
    (sasolver, SASolverScheduler, NOISY),
]


def gaussian_velocity(mu, std):
    """Exact velocity for data N(mu, std^2); its flow takes noise to mu + std noise."""

    def velocity(x_t, sigma):
        sigma = expand_sigma(sigma, x_t)
        variance = (1 - sigma) ** 2 * std**2 + sigma**2
        return (x_t - mu - (1 - sigma) * std**2 / variance * (x_t - (1 - sigma) * mu)) / sigma

    return velocity


@pytest.mark.parametrize("sampler", [dpmsolver, deis, sasolver])
def test_the_flow_is_solved_to_second_order(sampler):
    torch.manual_seed(0)
    mu, noise = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    velocity, exact = gaussian_velocity(mu, 0.5), mu + 0.5 * noise
    options = {"solver": {"tau_func": lambda t: 0}} if sampler is sasolver else {}
    coarse, fine = (float((sampler(velocity, noise, n, **options) - exact).abs().max()) for n in (32, 128))
    assert fine < 1.5e-3
    assert coarse / fine > 8


@pytest.mark.parametrize(("sampler", "options"), [(dpmsolver, SDE), (sasolver, NOISY)])
def test_the_sde_has_the_distribution_of_the_data(sampler, options):
    torch.manual_seed(0)
    noise, velocity = torch.randn(4000, 4), gaussian_velocity(torch.tensor(0.7), 0.5)
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 1, 2)]
    one, same, other = (sampler(velocity, noise, 30, solver=options, generator=source) for source in generators)
    assert torch.equal(one, same)
    assert (one - other).std() > 0.1
    assert float(one.mean()) == pytest.approx(0.7, abs=0.02)
    assert float(one.std()) == pytest.approx(0.5, abs=0.03)


def test_each_sample_has_its_own_source_of_noise():
    noise, velocity = torch.randn(2, 4), gaussian_velocity(torch.tensor(0.7), 0.5)
    both = dpmsolver(velocity, noise, 5, solver=SDE, generator=[torch.Generator().manual_seed(s) for s in (3, 4)])
    alone = dpmsolver(velocity, noise[1:], 5, solver=SDE, generator=[torch.Generator().manual_seed(4)])
    assert torch.allclose(both[1:], alone)


@pytest.mark.parametrize(("solve", "kind", "options"), CASES)
@pytest.mark.parametrize("steps", [5, 20])
def test_theorem_1_from_a_noisy_sample(monkeypatch, solve, kind, options, steps):
    """diffusers' scheduler on the latent model ends at the latent sample of which the lifted model's is the lift."""
    torch.manual_seed(0)
    double = {"dtype": torch.float64}
    A = torch.linalg.qr(torch.randn(D, LATENT, **double)).Q
    first, second, s = torch.randn(N * LATENT, 32, **double) / 3, torch.randn(32, N * LATENT, **double) / 3, 0.7

    def latent_model(z, tau):
        return (torch.tanh(z.flatten(1) @ first + 3 * tau.view(-1, 1)) @ second).view_as(z)

    def lifted(x_t, sigma):
        return calibrated_velocity(lambda scaled, tau: lift(latent_model(scaled @ A, tau), A), x_t, sigma, A, s)

    x_t, drawn = torch.randn(B, N, D, **double), []
    sigmas = sampling_sigmas(steps + 1, 3.0)[1:]
    taus, ks = calibrate(sigmas, s)

    def draw(shape, generator=None, device=None, dtype=None):
        drawn.append(torch.randn(shape, generator=generator, **double))
        return drawn[-1]

    for module in (schedulers.scheduling_dpmsolver_multistep, schedulers.scheduling_sasolver):
        monkeypatch.setattr(module, "randn_tensor", draw)
    x_0 = solve(lifted, x_t, steps, solver=options, sigmas=sigmas)

    projected = iter(list(drawn))
    for module in (schedulers.scheduling_dpmsolver_multistep, schedulers.scheduling_sasolver):
        monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: next(projected) @ A)
    scheduler = kind(prediction_type="flow_prediction", use_flow_sigmas=True, **options)
    scheduler.set_timesteps(steps)
    scheduler.sigmas, scheduler.timesteps, z = taus, 1000 * sigmas[:-1], ks[0] * x_t @ A
    scheduler.set_begin_index(0)
    for i in range(steps):
        u = latent_model(z, taus[i].expand(B))
        z = scheduler.step(u, scheduler.timesteps[i], z, return_dict=False)[0] if i < steps - 1 else z - taus[i] * u
    assert (x_0 - lift(z, A, s)).abs().max() < 1e-5 * x_0.abs().max()  # DPM-Solver steps in float32
    assert bool(drawn) == (options is SDE or kind is SASolverScheduler)


def test_levels_that_crowd_below_one_are_survived():
    for solve, _, options in CASES:
        x_0 = solve(gaussian_velocity(torch.tensor(0.7), 0.5), torch.randn(1, 3, 2, 2), 300, 17.0, solver=options)
        assert torch.isfinite(x_0).all(), options
