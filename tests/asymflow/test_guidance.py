from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from asymflow.guidance import Guidance, guide, guided
from asymflow.parameterization import x_0_from_u

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


def test_guidance_is_asked_for_only_in_its_interval():
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
    assert values == [1, 3, 3, 3, 1] and asked == [0.88, 0.5, 0.1]
    asked.clear()
    for scale, times in [(1.0, 0), (2.0, 5)]:
        always = guided(conditional, unconditional, Guidance(scale))
        for sigma in sigmas:
            always(x_t, sigma)
        assert len(asked) == times


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"scale": 0.5}, "scale is 0.5"), ({"scale": 2.0, "interval": (0.5, 0.2)}, "interval"),
     ({"scale": 2.0, "interval": (0.0, 1.5)}, "interval")],
)  # fmt: skip
def test_bad_guidance_is_refused(settings, named):
    with pytest.raises(ValueError, match=named):
        Guidance(**settings)
