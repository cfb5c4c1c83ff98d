import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import UniPCMultistepScheduler
from safetensors.torch import load_file

from asymflow.oklab import RELEASED
from asymflow.samplers import deis, dpmsolver, euler, heun, noise_for, unipc
from asymflow.schedule import expand_sigma, sampling_sigmas

ORACLES = Path(__file__).parents[1] / "data/oracles"
SAMPLERS = [euler, heun, unipc, dpmsolver, deis]


def gaussian_velocity(mu, std):
    """Exact velocity for data N(mu, std^2); its flow takes noise to mu + std noise."""

    def velocity(x_t, sigma):
        assert sigma.shape == (x_t.shape[0],)
        assert sigma.dtype == x_t.dtype
        assert (sigma > 0).all()
        sigma = expand_sigma(sigma, x_t)
        variance = (1 - sigma) ** 2 * std**2 + sigma**2
        x_0_hat = mu + (1 - sigma) * std**2 / variance * (x_t - (1 - sigma) * mu)
        return (x_t - x_0_hat) / sigma

    return velocity


@pytest.mark.parametrize("name", ["unipc_shift17", "unipc_dynamic"])
def test_unipc_matches_reference_values(name):
    r = load_file(ORACLES / f"{name}.safetensors")
    velocity = gaussian_velocity(r["mu"], float(r["std"]))
    x_0 = unipc(velocity, r["noise"], int(r["steps"]), float(r["shift"]))
    assert (x_0 - r["x_0"]).abs().max() < 1e-5 * r["x_0"].abs().max()


@pytest.mark.parametrize(("sampler", "order"), [(euler, 1), (heun, 2), (unipc, 2)])
def test_gaussian_flow_is_solved_to_its_order(sampler, order):
    torch.manual_seed(0)
    mu, noise = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    velocity, exact = gaussian_velocity(mu, 0.5), mu + 0.5 * noise
    errors = [float((sampler(velocity, noise, steps) - exact).abs().max()) for steps in (32, 64, 128)]
    assert errors[2] < (0.05 if order == 1 else 2e-3)
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert coarse / fine > (1.8 if order == 1 else 2.8)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_transform_of_the_clean_sample(sampler):
    torch.manual_seed(0)
    noise = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    velocity = gaussian_velocity(torch.zeros(1, dtype=torch.float64), 0.5)
    plain = sampler(velocity, noise, 8)
    assert plain.dtype == torch.float64
    assert torch.allclose(sampler(velocity, noise, 8, transform_x_0=lambda x: x), plain, atol=1e-10)
    fixed = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    assert torch.allclose(sampler(velocity, noise, 8, transform_x_0=lambda _: fixed), fixed, atol=1e-10)
    # The gamut clamp leaves an image that a screen can show.
    vivid = gaussian_velocity(torch.full((1,), 4.0, dtype=torch.float64), 0.5)
    shown = RELEASED.decode(sampler(vivid, noise, 8, transform_x_0=RELEASED.clamp_to_gamut), clamp=False)
    assert shown.abs().max() < 1 + 1e-5


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_steps_are_counted(sampler):
    noise, seen, evaluations = torch.randn(1, 3, 2, 2), [], []

    def velocity(x_t, sigma):
        evaluations.append(float(sigma[0]))
        return x_t

    x_0 = sampler(velocity, noise, 4, callback=lambda step, x_t: seen.append((step, x_t)))
    assert [step for step, _ in seen] == [0, 1, 2, 3]
    assert torch.equal(seen[-1][1], x_0)
    assert not torch.equal(seen[0][1], seen[1][1])
    assert len(evaluations) == (7 if sampler is heun else 4)
    assert evaluations[0] == 1
    assert min(evaluations) > 0
    with pytest.raises(ValueError, match="steps is 0"):
        sampler(velocity, noise, 0)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_callback_may_change_the_sample(sampler):
    noise = torch.randn(2, 3, 4, 4)
    velocity = gaussian_velocity(torch.tensor(0.7), 0.5)
    other = sampler(velocity, noise, 4, callback=lambda step, x_t: x_t + 1 if step == 0 else None)
    assert (other - sampler(velocity, noise, 4)).abs().min() > 1e-3
    replaced = sampler(velocity, noise, 4, callback=lambda step, x_t: torch.full_like(x_t, 9))
    assert torch.equal(replaced, torch.full_like(noise, 9))


def test_unipc_takes_options_of_its_solver():
    noise = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    velocity, exact = gaussian_velocity(torch.zeros(1, dtype=torch.float64), 0.5), 0.5 * noise
    second, third = (unipc(velocity, noise, 24, solver={"solver_order": order}) for order in (2, 3))
    assert (third - exact).abs().max() < (second - exact).abs().max()
    configured = unipc(velocity, noise, 24, solver=UniPCMultistepScheduler(solver_order=3, solver_type="bh2").config)
    assert torch.equal(configured, third)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_given_noise_levels_replace_those_of_steps_and_shift(sampler):
    noise, sigmas = torch.randn(2, 3, 4, 4), sampling_sigmas(6, 3.0)
    velocity = gaussian_velocity(torch.tensor(0.7), 0.5)
    plain = sampler(velocity, noise, 6, 3.0)
    assert torch.equal(sampler(velocity, noise, 1, sigmas=sigmas), plain)
    assert sigmas[0] == 1
    assert sigmas[-1] == 0
    passed = []
    sampler(velocity, noise, 6, 3.0, callback=lambda step, x_t: passed.append(x_t) and None)
    if sampler in (euler, heun):  # the others use the steps before
        later = sampler(velocity, passed[1], 1, sigmas=sigmas[2:])
        assert torch.allclose(later, plain, atol=1e-5)


def test_one_step_predicts_the_mean():
    noise = torch.randn(2, 3, 4, 4)
    for sampler in SAMPLERS:
        x_0 = sampler(gaussian_velocity(torch.tensor(0.7), 0.5), noise, 1)
        assert torch.allclose(x_0, torch.full_like(x_0, 0.7), atol=1e-6)


def test_unipc_survives_levels_that_crowd_below_one():
    noise = torch.randn(1, 3, 2, 2)
    x_0 = unipc(gaussian_velocity(torch.tensor(0.7), 0.5), noise, 700, shift=17.0)
    assert torch.isfinite(x_0).all()


def test_noise_depends_on_seed_and_index_alone():
    state = torch.get_rng_state()
    drawn = {(seed, index): noise_for(seed, index, (3, 4, 4)) for seed in range(3) for index in range(4)}
    assert torch.equal(torch.get_rng_state(), state)
    again = {key: noise_for(*key, (3, 4, 4)) for key in reversed(drawn)}
    assert all(torch.equal(drawn[key], again[key]) for key in drawn)
    assert len({tuple(noise.flatten().tolist()) for noise in drawn.values()}) == 12
    many = torch.stack([noise_for(7, index, (16,)) for index in range(500)])
    assert abs(float(many.mean())) < 0.05
    assert float(many.std()) == pytest.approx(1, abs=0.03)


def test_importing_the_core_is_cheap():
    names = "patches oklab moments subspace schedule parameterization losses guidance samplers ema"
    code = "import sys\n" + "".join(f"import asymflow.{name}\n" for name in names.split())
    code += "import asymflow.metrics.sliced_wasserstein, asymflow.metrics.spectrum\n"
    code += "print([m for m in 'ray mlflow deepspeed pydantic diffusers'.split() if m in sys.modules])"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
