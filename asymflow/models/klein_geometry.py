"""What a latent token of FLUX.2 klein stands for, by its autoencoder's settings; read without torch."""

from collections.abc import Mapping
from inspect import signature
from math import prod
from pathlib import Path
from typing import Any

from asymflow.models.latent import TokenGeometry
from asymflow.outside_text import read_json_object

_GEOMETRY = ("patch_size", "block_out_channels", "latent_channels")


def token_geometry(config: Mapping[str, Any]) -> TokenGeometry:
    """Return the geometry that an AutoencoderKLFlux2's settings give: its downsampling, times the packing of latents.

    Settings that are left out have the class's defaults. Raises ValueError for packing that is not square.
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
    """Read the geometry of a pipeline folder. Raises ValueError without an autoencoder in it."""
    file = Path(folder) / "vae" / "config.json"
    if not file.is_file():
        raise ValueError("it has no vae/config.json, which tells the size of its patches")
    return token_geometry(read_json_object(file))
