"""Reference values of a lifted FLUX.2: a tiny latent model, its subspace, inputs and velocities."""

from pathlib import Path

import torch
from diffusers import Flux2Transformer2DModel

from asymflow.models.flux2 import PixelFlux2
from asymflow.oklab import RELEASED
from asymflow.subspace import Subspace

REFERENCE = Path(__file__).parents[1] / "data/oracles/flux2_lift.safetensors"


def latent_transformer(reference: dict[str, torch.Tensor]) -> Flux2Transformer2DModel:
    model = Flux2Transformer2DModel(
        in_channels=128,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=16,
        timestep_guidance_channels=32,
        axes_dims_rope=(8, 8, 8, 8),
        guidance_embeds=False,
    )
    prefix = "latent_model."
    model.load_state_dict({k.removeprefix(prefix): v for k, v in reference.items() if k.startswith(prefix)})
    return model


def lifted(reference: dict[str, torch.Tensor]) -> PixelFlux2:
    subspace = Subspace(reference["A"], float(reference["s"]), "channel_first", RELEASED, {})
    return PixelFlux2.from_latent(latent_transformer(reference), subspace).eval()


def arguments(reference: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return reference["x_t"], reference["t"], reference["encoder_hidden_states"]


def assert_close(actual: torch.Tensor, expected: torch.Tensor, relative: float = 1e-5) -> None:
    assert (actual - expected).abs().max() <= relative * expected.abs().max()
