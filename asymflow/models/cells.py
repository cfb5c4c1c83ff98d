"""Cells of latents as tokens, channel first: those of FLUX.2 and of Qwen-Image."""

import torch.nn.functional as F
from torch import Tensor


def pack_latents(latents: Tensor, side: int = 2) -> Tensor:
    """Pack latents into tokens: square cells, channel first.

    Args:
        latents: Latents (B, C, H, W).
        side: Side of a cell; it divides H and W.

    Returns:
        Tokens (B, H W / side^2, side^2 C), row by row.
    """
    return F.pixel_unshuffle(latents, side).flatten(2).mT


def unpack_latents(tokens: Tensor, grid: tuple[int, int], side: int = 2) -> Tensor:
    """Unpack tokens into latents, the inverse of `pack_latents`.

    Args:
        tokens: Tokens (B, h w, side^2 C).
        grid: Rows and columns of tokens, (h, w).
        side: Side of a cell.

    Returns:
        Latents (B, C, side h, side w).
    """
    return F.pixel_shuffle(tokens.mT.unflatten(2, grid), side)
