"""What the method asks of a latent model besides its transformer: an encoder of pictures and one of captions.

A family of models is a file like `klein.py` that defines FAMILY, and its name in MODULES.
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
    """What a latent token stands for."""

    pixels_per_token: int
    """Side of the square of pixels, which is the pixel model's patch size"""
    token_width: int
    """d"""


class ImageEncoder(Protocol):
    """Pictures to latent tokens and back. Inputs may lie on any device, outputs lie on the encoder's."""

    token_width: int
    """d"""
    pixels_per_token: int
    """Side of the square that a token stands for; H and W are multiples of it"""

    def encode(self, images: "Tensor") -> "Tensor":
        """(B, 3, H, W) sRGB in [-1, 1] -> (B, N, d) tokens z_0, row by row of the grid."""

    def decode(self, tokens: "Tensor", grid: tuple[int, int]) -> "Tensor":
        """(B, hw, d) tokens on a grid (h, w) -> (B, 3, H, W) sRGB in [-1, 1], float32."""


class TextEncoder(Protocol):
    """Captions to embeddings. But for rounding, an embedding depends on no caption but its own."""

    width: int
    """E"""

    def encode(self, captions: Sequence[str]) -> "list[Tensor]":
        """Return one (T_i, E) embedding per caption, on the encoder's device, padded as it was loaded to."""


@dataclass(frozen=True)
class LatentFamily:
    """A family of latent models, each a diffusers pipeline folder."""

    pipelines: tuple[str, ...]
    """Names of pipeline classes in the folders' model_index.json"""
    read_geometry: Callable[[str | Path], TokenGeometry]
    """(folder): from its configuration files alone. Raises ValueError where they do not tell"""
    image_parts: tuple[str, ...]
    """Sub-folders that the image encoder needs"""
    text_parts: tuple[str, ...]
    """Sub-folders that the text encoder needs"""
    load_image_encoder: "Callable[[str, str, torch.dtype], ImageEncoder]"
    """(folder, device, dtype)"""
    load_text_encoder: Callable[..., TextEncoder]
    """(folder, device, dtype, max_tokens, padding="none"): longer captions are cut; `asymflow.models.text.PADDINGS`"""


def family_of(folder: str | Path) -> LatentFamily:
    """The family of a pipeline folder. Raises ValueError where there is no model_index.json, or one of no family."""
    families: list[LatentFamily] = [import_module(name).FAMILY for name in MODULES]
    known = {pipeline: family for family in families for pipeline in family.pipelines}
    index = Path(folder) / "model_index.json"
    if not index.is_file():
        raise ValueError(f"it has no model_index.json, which names the pipeline; known: {', '.join(known)}")
    pipeline = read_json_object(index).get("_class_name")
    if pipeline not in known:
        raise ValueError(f"its model_index.json names the pipeline {pipeline!r}; known: {', '.join(known)}")
    return known[pipeline]
