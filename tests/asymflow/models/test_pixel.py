"""The finished model against the authors' numbers, and what keeps its type. Its files: tests/asymflow/adapters."""

import pytest
import torch
from lift_oracle import latent_transformer

from asymflow.models.conditioned import TextVelocity
from asymflow.models.pixel import TRAINED_WEIGHTS, AsymFlux2Transformer2DModel
from asymflow.oklab import RELEASED
from asymflow.subspace import Subspace


def part(reference, prefix):
    return {name.removeprefix(prefix): tensor for name, tensor in reference.items() if name.startswith(prefix)}


def make(reference, trained=None):
    subspace = Subspace(reference["A"], float(reference["s"]), "channel_first", RELEASED)
    return AsymFlux2Transformer2DModel.from_latent(latent_transformer(reference), subspace, 1e-4, trained)


@pytest.mark.parametrize("name", ["u_init", "u_tuned"])
def test_velocities_are_the_released_models(reference, name):
    tuned = part(reference, "tuned.")
    assert tuned.keys() == set(TRAINED_WEIGHTS)
    model, x_t = make(reference, tuned if name == "u_tuned" else None), reference["x_t"]
    velocity = TextVelocity(model, tuple(x_t.shape[-2:]), list(reference["encoder_hidden_states"]))
    with torch.no_grad():
        u = velocity(x_t, reference["t"])
    assert (u - reference[name]).abs().max() < 1e-5 * reference[name].abs().max()


def test_output_is_a_diffusers_one_and_float32_whatever_the_networks_type(reference):
    model = make(reference).to(torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert model.proj_buffer.dtype == torch.float32
    tokens, text = torch.randn(1, 4, 768), torch.randn(1, 3, 16)
    positions = torch.zeros(4, 4, dtype=torch.long)
    out = model(tokens, text, torch.tensor([0.5]), positions, torch.zeros(3, 4, dtype=torch.long))
    assert out.sample.shape == (1, 4, 768)
    assert out.sample.dtype == torch.float32
