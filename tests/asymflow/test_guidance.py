from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from asymflow.guidance import guide
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
