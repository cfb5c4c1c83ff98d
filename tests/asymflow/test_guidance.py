from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from asymflow.guidance import Guidance, guide, guided
from asymflow.parameterization import x_0_from_u
from asymflow.samplers import euler, heun, unipc
from asymflow.schedule import sampling_sigmas

REFERENCE = load_file(Path(__file__).parents[1] / "data/oracles/guidance.safetensors")


@pytest.mark.parametrize(("orthogonal", "name"), [(False, "u_cfg"), (True, "u_apg")])
def test_reference_values(orthogonal, name):
    r = REFERENCE
    u = guide(r["u_cond"], r["u_uncond"], r["x_t"], r["sigma"], float(r["scale"]), orthogonal)
    assert (u - r[name]).abs().max() < 1e-5 * r[name].abs().max()


@pytest.mark.parametrize("shape", [(2, 5, 12), (2, 3, 8, 8)])
def test_orthogonal_guidance_has_no_part_along_the_clean_sample(shape):
    torch.manual_seed(0)
    u_cond, u_uncond, x_t = (torch.randn(shape, dtype=torch.float64) for _ in range(3))
    sigma = torch.tensor([0.1, 0.8], dtype=torch.float64)
    u = guide(u_cond, u_uncond, x_t, sigma, 4.0)
    x_0 = x_0_from_u(u_cond, x_t, sigma)
    along = ((x_0_from_u(u, x_t, sigma) - x_0) * x_0).flatten(1).sum(1)
    assert along.abs().max() < 1e-10
    assert torch.equal(guide(u_cond, u_uncond, x_t, sigma, 1.0), u_cond)
    alone = guide(u_cond[:1], u_uncond[:1], x_t[:1], sigma[:1], 4.0)
    assert torch.allclose(alone, u[:1])  # samples do not see each other


def test_a_fraction_of_the_parallel_part_is_removed():
    torch.manual_seed(0)
    u_cond, u_uncond, x_t = (torch.randn(2, 5, 12, dtype=torch.float64) for _ in range(3))
    sigma = torch.tensor([0.1, 0.8], dtype=torch.float64)
    plain, quarter, orthogonal = (guide(u_cond, u_uncond, x_t, sigma, 4.0, part) for part in (0.0, 0.25, 1.0))
    assert torch.allclose(quarter, 0.75 * plain + 0.25 * orthogonal)
    assert torch.equal(plain, guide(u_cond, u_uncond, x_t, sigma, 4.0, False))
    assert torch.equal(orthogonal, guide(u_cond, u_uncond, x_t, sigma, 4.0, True))


def test_guidance_is_evaluated_only_in_its_interval():
    asked = []

    def unconditional(x_t, sigma):
        asked.append(round(float(sigma[0]), 2))
        return torch.zeros_like(x_t)

    def conditional(x_t, sigma):
        return torch.ones_like(x_t)

    x_t = torch.randn(2, 3, 4)
    sigmas = [torch.full((2,), value) for value in (1.0, 0.88, 0.5, 0.1, 0.05)]
    within = guided(conditional, unconditional, Guidance(3.0, orthogonal=False, interval=(0.1, 0.88)))
    values = [float(within(x_t, sigma).mean()) for sigma in sigmas]
    assert values == [1, 3, 3, 3, 1]
    assert asked == [0.88, 0.5, 0.1]
    asked.clear()
    for scale, times in [(1.0, 0), (2.0, 5)]:
        always = guided(conditional, unconditional, Guidance(scale))
        for sigma in sigmas:
            always(x_t, sigma)
        assert len(asked) == times


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("steps", [25, 50, 100])
def test_a_level_at_either_end_of_the_interval_is_guided_in_every_type(dtype, steps):
    """Both ends are decimals, as a configuration has them; the levels are those that a sampler hands over."""
    levels = sampling_sigmas(steps).to(dtype)
    for i, level in enumerate(levels):
        edge = round(1 - i / steps, 2)
        assert Guidance(2.0, interval=(edge, 1.0)).at(level[None]), f"lower end {edge}"
        assert Guidance(2.0, interval=(0.0, edge)).at(level[None]), f"upper end {edge}"
    apart = torch.finfo(dtype).eps if dtype is not torch.float64 else torch.finfo(torch.float32).eps
    assert not Guidance(2.0, interval=(0.5, 0.7)).at(torch.tensor([0.7 * (1 + 2 * apart)], dtype=dtype))
    assert not Guidance(2.0, interval=(0.5, 0.7)).at(torch.tensor([0.5 * (1 - 2 * apart)], dtype=dtype))


@pytest.mark.parametrize("solve", [euler, heun, unipc])
def test_every_sampler_guides_at_the_edges_of_the_interval(solve):
    """Float32 noise at 50 steps: 0.82 and 0.7, the ends, are levels of the sampler and are guided."""
    guided_at = []

    def unconditional(x_t, sigma):
        guided_at.append(round(float(sigma[0]), 3))
        return torch.zeros_like(x_t)

    velocity = guided(lambda x_t, sigma: 0.1 * x_t, unconditional, Guidance(2.0, interval=(0.7, 0.82)))
    solve(velocity, torch.randn(1, 4, 3), 50)
    assert sorted(set(guided_at)) == [0.7, 0.72, 0.74, 0.76, 0.78, 0.8, 0.82]


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"scale": 0.5}, "scale is 0.5"), ({"scale": 2.0, "interval": (0.5, 0.2)}, "interval"),
     ({"scale": 2.0, "interval": (0.0, 1.5)}, "interval"), ({"scale": 2.0, "orthogonal": 1.5}, "guidance is 1.5")],
)  # fmt: skip
def test_bad_guidance_is_refused(settings, named):
    with pytest.raises(ValueError, match=named):
        Guidance(**settings)
