"""FLUX.2: its tokens, positions and call; and the models that are lifted from it, by their names for FLUX.2."""

import torch
from diffusers import Flux2Transformer2DModel
from torch import Tensor

from asymflow.models.backbone import check_grid
from asymflow.models.cells import pack_latents, unpack_latents
from asymflow.models.geometry import LORA_TARGETS
from asymflow.models.lifted import LatentModel, PixelModel, fused

__all__ = [
    "LORA_TARGETS",
    "LatentFlux2",
    "PixelFlux2",
    "fused",
    "image_positions",
    "pack_latents",
    "run_transformer",
    "text_positions",
    "unpack_latents",
]

PixelFlux2 = PixelModel
LatentFlux2 = LatentModel
EMBEDDED_GUIDANCE = 1.0
"""Guidance that a guidance-distilled transformer (FLUX.2 dev) is evaluated at: its conditional velocity, which the loss
needs. Samplers apply guidance themselves"""
REFERENCE_TIME = 10
"""Reference image i, from 1, is at time 10 i, the noisy image at 0, as in FLUX.2"""


def image_positions(grid: tuple[int, int], device: torch.device | str | None = None, time: int = 0) -> Tensor:
    """Return the positions (time, row, column, 0) of the tokens on a grid.

    Args:
        grid: Rows and columns of tokens, (h, w).
        device: Device of the result.
        time: First coordinate of all tokens; it separates reference images.

    Returns:
        Positions (h w, 4), int64, row by row.
    """
    rows, columns = (torch.arange(side, device=device) for side in grid)
    one = torch.arange(1, device=device)
    return torch.cartesian_prod(one + time, rows, columns, one)


def text_positions(tokens: int, device: torch.device | str | None = None) -> Tensor:
    """Return the positions (0, 0, 0, index) of text tokens.

    Args:
        tokens: Number of tokens, T.
        device: Device of the result.

    Returns:
        Positions (T, 4), int64.
    """
    one = torch.arange(1, device=device)
    return torch.cartesian_prod(one, one, one, torch.arange(tokens, device=device))


def run_transformer(
    transformer: Flux2Transformer2DModel,
    tokens: Tensor,
    sigma: Tensor,
    encoder_hidden_states: Tensor,
    grid: tuple[int, int],
    text_mask: Tensor | None = None,
    references: Tensor | None = None,
) -> Tensor:
    """Evaluate a FLUX.2 transformer once.

    Args:
        transformer: The transformer.
        tokens: Image tokens (B, N, C).
        sigma: Noise levels (B,) in [0, 1].
        encoder_hidden_states: Text embeddings (B, T, E).
        grid: Rows and columns of image tokens, (h, w) with h w = N.
        text_mask: True for valid text tokens (B, T); None: all are valid. Masked tokens are ignored, so each row of a
            batch equals the same row alone without padding.
        references: Tokens of R clean reference images per image (B, R, N, C), on the same grid; None: there are none.

    Returns:
        Output tokens (B, N, C').

    Raises:
        ValueError: If the tokens do not fill the grid.
    """
    check_grid(tokens, grid)
    count, positions = tokens.shape[1], image_positions(grid, tokens.device)
    if references is not None:
        times = [REFERENCE_TIME * (i + 1) for i in range(references.shape[1])]
        positions = torch.cat([positions, *(image_positions(grid, tokens.device, time) for time in times)])
        tokens = torch.cat([tokens, references.flatten(1, 2)], dim=1)
    attention = {}
    if text_mask is not None:
        image_mask = text_mask.new_ones(tokens.shape[:2])
        attention["attention_mask"] = torch.cat([text_mask, image_mask], dim=1)[:, None, None, :]
    guided = transformer.config.guidance_embeds
    return transformer(
        hidden_states=tokens,
        encoder_hidden_states=encoder_hidden_states,
        timestep=sigma,
        guidance=torch.full_like(sigma, EMBEDDED_GUIDANCE) if guided else None,
        img_ids=positions,
        txt_ids=text_positions(encoder_hidden_states.shape[1], tokens.device),
        joint_attention_kwargs=attention,
        return_dict=False,
    )[0][:, :count]
