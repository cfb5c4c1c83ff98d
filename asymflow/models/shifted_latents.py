"""Shifted and scaled latents of AutoencoderKL, in cells packed channel last.

Those of Z-Image and of Stable Diffusion 3. Importable without torch.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from asymflow.models.backbone import TokenGeometry
from asymflow.models.latent import read_autoencoder_config

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from asymflow.models.latent import ImageEncoder

CELL = 2
"""Side of the cell of latents that is a token; the only one of the published models"""


def pack(latents: "Tensor", side: int) -> "Tensor":
    """Pack latents into tokens channel last, as the transformers pack them.

    Args:
        latents: Latents (B, C, H, W).
        side: Side of a cell; it divides H and W.

    Returns:
        Tokens (B, H W / side^2, side^2 C), row by row.
    """
    cells = latents.unflatten(3, (-1, side)).unflatten(2, (-1, side))  # (B, C, h, side, w, side)
    return cells.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpack(tokens: "Tensor", grid: tuple[int, int], side: int) -> "Tensor":
    """Unpack tokens into latents, the inverse of `pack`.

    Args:
        tokens: Tokens (B, h w, side^2 C).
        grid: Rows and columns of tokens, (h, w).
        side: Side of a cell.

    Returns:
        Latents (B, C, side h, side w).
    """
    cells = tokens.unflatten(2, (side, side, -1)).unflatten(1, grid)  # (B, h, w, side, side, C)
    return cells.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def read_token_geometry(folder: str | Path) -> TokenGeometry:
    """Read the geometry of a pipeline folder.

    Args:
        folder: The folder.

    Returns:
        The geometry.

    Raises:
        ValueError: If the folder has no autoencoder, or its settings are incomplete.
    """
    config = read_autoencoder_config(folder, ("block_out_channels", "latent_channels"))
    downsampling = 2 ** (len(config["block_out_channels"]) - 1)
    return TokenGeometry(CELL * downsampling, CELL**2 * config["latent_channels"])


def load_image_encoder(folder: str, device: str, dtype: "torch.dtype") -> "ImageEncoder":
    """Load the autoencoder: z = (latents - shift_factor) scaling_factor.

    Args:
        folder: The pipeline's folder.
        device: Device of the autoencoder.
        dtype: Type of the autoencoder.

    Returns:
        The encoder.
    """
    from diffusers import AutoencoderKL  # a geometry is read without it

    from asymflow.models.channel_normalized import ChannelNormalizedImages

    autoencoder: Any = AutoencoderKL.from_pretrained(folder, subfolder="vae", dtype=dtype)
    mean, std = autoencoder.config.shift_factor, 1 / autoencoder.config.scaling_factor
    geometry = read_token_geometry(folder)
    return ChannelNormalizedImages(autoencoder.to(device).eval(), geometry, mean, std, pack, unpack, CELL)
