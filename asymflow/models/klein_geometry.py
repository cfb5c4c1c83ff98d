"""Geometry of FLUX.2 klein's latent tokens, from its autoencoder's settings; importable without torch."""

from collections.abc import Mapping
from inspect import signature
from math import prod
from pathlib import Path
from typing import Any

from asymflow.models.latent import TokenGeometry, read_autoencoder_config

_GEOMETRY = ("patch_size", "block_out_channels", "latent_channels")


def token_geometry(config: Mapping[str, Any]) -> TokenGeometry:
    """Return the geometry of latent tokens: the autoencoder's downsampling times the packing of latents.

    Args:
        config: Settings of an AutoencoderKLFlux2; missing ones have the class's defaults.

    Returns:
        The geometry.

    Raises:
        ValueError: If the packing is not square.
    """
    if any(name not in config for name in _GEOMETRY):
        from diffusers import AutoencoderKLFlux2  # saved pipelines leave nothing out

        defaults = {name: p.default for name, p in signature(AutoencoderKLFlux2.__init__).parameters.items()}
        config = {**defaults, **config}
    rows, columns = config["patch_size"]
    if rows != columns:
        raise ValueError(f"the autoencoder packs latents in {rows}x{columns} cells; only square ones are supported")
    downsampling = 2 ** (len(config["block_out_channels"]) - 1)
    return TokenGeometry(rows * downsampling, prod((rows, columns, config["latent_channels"])))


def read_token_geometry(folder: str | Path) -> TokenGeometry:
    """Read the geometry of a pipeline folder.

    Args:
        folder: The folder.

    Returns:
        The geometry.

    Raises:
        ValueError: If the folder has no autoencoder, or its packing is not square.
    """
    return token_geometry(read_autoencoder_config(folder))
