"""The toy's latent flow model: a small Flux2Transformer2DModel on the true 128-value tokens, u-prediction."""

from pathlib import Path

import torch
from diffusers import Flux2Transformer2DModel
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from asymflow.losses import flow_matching_loss
from asymflow.models.flux2 import run_transformer
from asymflow.models.text import pad_embeddings
from asymflow.schedule import sample_sigma
from pipelines.toy.training import train

BATCH = 64
UNCONDITIONAL = 0.1  # share of captions dropped, for guidance
LONGEST = 20  # tokens of text; the few longer captions count as dropped, or every batch would be padded for them
FAST_BF16 = any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16"))  # else emulated
SHIFT = 1.5  # of sampling: 64 x 64 pictures need little more noise than their 16 tokens already get
# Of training: the lifted model is asked at tau, below a tenth while sigma is still 0.2, and pixels show the noise that
# a decoder hides; so low levels get their share.
TIME_STD = 1.6


def new_transformer(text_width: int) -> Flux2Transformer2DModel:
    torch.manual_seed(2)
    return Flux2Transformer2DModel(
        in_channels=128,
        num_layers=1,
        num_single_layers=4,
        attention_head_dim=64,
        num_attention_heads=4,
        joint_attention_dim=text_width,
        timestep_guidance_channels=256,
        mlp_ratio=1.75,
        axes_dims_rope=(16, 16, 16, 16),
        guidance_embeds=False,
    )


def train_flow(
    latents: Tensor, embeddings: list[Tensor], unconditional: Tensor, grid: tuple[int, int], folder: Path, steps: int
) -> Flux2Transformer2DModel:
    """Latents are (N, hw, 128) tokens, embeddings one (T_i, E) a picture, `unconditional` that of the empty caption."""
    model = new_transformer(unconditional.shape[-1])

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(latents), (BATCH,), generator=generator)
        z_0 = latents[index]
        noise = torch.randn(z_0.shape, generator=generator)
        sigma = sample_sigma(BATCH, std=TIME_STD, generator=generator)
        dropped = torch.rand(BATCH, generator=generator) < UNCONDITIONAL
        captions = [embeddings[i] for i in index]
        text, mask = pad_embeddings(
            [unconditional if drop or len(e) > LONGEST else e for e, drop in zip(captions, dropped, strict=True)]
        )
        z_t = (1 - sigma)[:, None, None] * z_0 + sigma[:, None, None] * noise
        # together twice the steps an hour; 36 tokens are too few for attention by tiles
        with torch.autocast("cpu", torch.bfloat16, enabled=FAST_BF16), sdpa_kernel(SDPBackend.MATH):
            u_hat = run_transformer(model, z_t, sigma, text, grid, mask)
        return flow_matching_loss(noise - z_0, u_hat.float())

    return train("flow", model, loss_of, folder, steps, lr=1e-3, report=dict)

