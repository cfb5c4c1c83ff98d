"""Interface of a latent model besides its transformer: an image encoder and a text encoder.

A family of models is a file such as `klein.py` that defines FAMILY, and its name in MODULES.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from asymflow.outside_text import read_json_object

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MODULES = ("asymflow.models.klein",)


class TokenGeometry(NamedTuple):
    """Geometry of a latent token."""

    pixels_per_token: int
    """Side in pixels of the square that a token covers: the pixel model's patch size"""
    token_width: int
    """Width of a token, d"""


class ImageEncoder(Protocol):
    """Encoder of images to latent tokens and back. Inputs may be on any device; outputs are on the encoder's."""

    token_width: int
    """Width of a token, d"""
    pixels_per_token: int
    """Side in pixels of the square that a token covers; H and W are multiples of it"""

    def encode(self, images: "Tensor") -> "Tensor":
        """Encode images.

        Args:
            images: sRGB images (B, 3, H, W) in [-1, 1].

        Returns:
            z_0 tokens (B, N, d), row by row.
        """

    def decode(self, tokens: "Tensor", grid: tuple[int, int]) -> "Tensor":
        """Decode latent tokens.

        Args:
            tokens: Latent tokens (B, h w, d).
            grid: Rows and columns of tokens, (h, w).

        Returns:
            sRGB images (B, 3, H, W) in [-1, 1], float32.
        """


class TextEncoder(Protocol):
    """Encoder of captions. Up to rounding, an embedding depends only on its own caption."""

    width: int
    """Width of an embedding, E"""

    def encode(self, captions: Sequence[str]) -> "list[Tensor]":
        """Return one embedding per caption, padded as configured at loading.

        Args:
            captions: The captions.

        Returns:
            Embeddings (T_i, E), on the encoder's device.
        """


@dataclass(frozen=True)
class LatentFamily:
    """Family of latent models, each a diffusers pipeline folder."""

    pipelines: tuple[str, ...]
    """Names of pipeline classes in the folders' model_index.json"""
    read_geometry: Callable[[str | Path], TokenGeometry]
    """(folder): reads its configuration files only. Raises ValueError if they do not define the geometry"""
    image_parts: tuple[str, ...]
    """Subfolders that the image encoder needs"""
    text_parts: tuple[str, ...]
    """Subfolders that the text encoder needs"""
    load_image_encoder: "Callable[[str, str, torch.dtype], ImageEncoder]"
    """(folder, device, dtype)"""
    load_text_encoder: Callable[..., TextEncoder]
    """(folder, device, dtype, max_tokens, padding="none"): longer captions are cut; `asymflow.models.text.PADDINGS`"""


def family_of(folder: str | Path) -> LatentFamily:
    """Return the family of a pipeline folder.

    Args:
        folder: The folder.

    Returns:
        The family.

    Raises:
        ValueError: If model_index.json is missing or names an unknown pipeline.
    """
    families: list[LatentFamily] = [import_module(name).FAMILY for name in MODULES]
    known = {pipeline: family for family in families for pipeline in family.pipelines}
    index = Path(folder) / "model_index.json"
    if not index.is_file():
        raise ValueError(f"it has no model_index.json, which names the pipeline; known: {', '.join(known)}")
    pipeline = read_json_object(index).get("_class_name")
    if pipeline not in known:
        raise ValueError(f"its model_index.json names the pipeline {pipeline!r}; known: {', '.join(known)}")
    return known[pipeline]
