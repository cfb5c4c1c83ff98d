"""Interface of a latent model: a transformer, an image encoder and a text encoder.

A family of models is a file such as `klein.py` that defines FAMILY, and its name in MODULES.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from asymflow.models.backbone import Backbone, PublishedModel
from asymflow.models.backbone import TokenGeometry as TokenGeometry
from asymflow.models.gguf_base import find_gguf, load_gguf
from asymflow.text_files import read_json_object

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MODULES = (
    "asymflow.models.klein",
    "asymflow.models.flux2_dev",
    "asymflow.models.z_image",
    "asymflow.models.qwen_image",
    "asymflow.models.sd3",
    "asymflow.models.flux3",
)
INDEX_FILES = ("model_index.json", "modular_model_index.json")
"""Files that name the pipeline of a folder; the second one is that of modular pipelines"""
DEFAULT = "FLUX.2-klein-base-9B"
"""Published model that stands for a base of unknown name"""


def read_autoencoder_config(folder: str | Path, needed: Sequence[str] = ()) -> dict[str, Any]:
    """Read the settings of a pipeline folder's autoencoder.

    Args:
        folder: The folder.
        needed: Settings that must be there.

    Returns:
        The settings.

    Raises:
        ValueError: If the folder has no autoencoder, or its settings are incomplete.
    """
    file = Path(folder) / "vae" / "config.json"
    if not file.is_file():
        raise ValueError("it has no vae/config.json, which defines the size of its patches")
    config = read_json_object(file)
    if missing := [name for name in needed if name not in config]:
        raise ValueError(f"its vae/config.json lacks {' and '.join(missing)}")
    return config


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
    """Names of pipeline classes in the folders' INDEX_FILES"""
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
    backbone: Backbone
    """The transformer"""
    published: Mapping[str, PublishedModel] = field(default_factory=dict)
    """Published models by the names of their repositories"""
    paddings: tuple[str, ...] = ("max_length", "none")
    """Those of `asymflow.models.text.PADDINGS` that the transformer was trained for"""
    least_text_tokens: int = 1
    """Least `max_tokens` of the text encoder"""
    pixel_pipeline: bool = False
    """Whether `asymflow.diffusers_pipeline` samples this family's pixel models, and holds merged ones"""


def families() -> list[LatentFamily]:
    """Return all families.

    Returns:
        The families, in the order of MODULES.
    """
    return [import_module(name).FAMILY for name in MODULES]


def family_of(folder: str | Path) -> LatentFamily:
    """Return the family of a pipeline folder.

    Args:
        folder: The folder.

    Returns:
        The family.

    Raises:
        ValueError: If the folder has none of INDEX_FILES, or it names an unknown pipeline.
    """
    known = {pipeline: family for family in families() for pipeline in family.pipelines}
    indices = [path for name in INDEX_FILES if (path := Path(folder) / name).is_file()]
    if not indices:
        raise ValueError(f"it has no model_index.json, which names the pipeline; known: {', '.join(known)}")
    pipeline = read_json_object(indices[0]).get("_class_name")
    if pipeline not in known:
        raise ValueError(f"its {indices[0].name} names the pipeline {pipeline!r}; known: {', '.join(known)}")
    return known[pipeline]


def backbone_of(transformer: Any) -> Backbone:
    """Return the description of a latent transformer.

    Args:
        transformer: The transformer, or the name of its class in diffusers.

    Returns:
        The backbone.

    Raises:
        ValueError: If no family has such a transformer.
    """
    known = {family.backbone.transformer: family.backbone for family in families()}
    names = [transformer] if isinstance(transformer, str) else [cls.__name__ for cls in type(transformer).__mro__]
    for name in names:
        if name in known:
            return known[name]
    raise ValueError(f"{names[0]} is the transformer of no family; known: {', '.join(known)}")


def backbone_of_config(config: Mapping[str, Any]) -> Backbone:
    """Return the backbone that settings of a transformer belong to.

    Args:
        config: Settings, with the `_class_name` that diffusers saves; without one they are FLUX.2's.

    Returns:
        The backbone.

    Raises:
        ValueError: If no family has such a transformer.
    """
    return backbone_of(config.get("_class_name") or published_model().config["_class_name"])


def published_model(base: str | Path = "") -> PublishedModel:
    """Return the published model that a base is, by the last part of its path.

    Args:
        base: Folder or repository of the base, such as `/models/FLUX.2-klein-base-4B`; it need not exist.

    Returns:
        The model; that of DEFAULT for another name. Its settings have a `_class_name`.
    """
    models = {
        name: model._replace(config={"_class_name": family.backbone.transformer, **model.config})
        for family in families()
        for name, model in family.published.items()
    }
    return models.get(Path(base).name, models[DEFAULT])


def load_transformer(folder: str | Path, dtype: "torch.dtype") -> Any:
    """Load the transformer of a pipeline folder, also from a GGUF file (`asymflow.models.gguf_base`).

    Args:
        folder: The folder.
        dtype: Type of the weights.

    Returns:
        The transformer, on the CPU.

    Raises:
        ValueError: If the folder belongs to no family, or its GGUF file cannot be read or is of another family than
            FLUX.2.
    """
    import diffusers  # with torch: geometries are read without it

    backbone = family_of(folder).backbone
    cls = getattr(diffusers, backbone.transformer)
    if file := find_gguf(folder):
        if not backbone.has_comfyui_names:
            raise ValueError(f"{file} is the GGUF file of a {backbone.transformer}; only FLUX.2's are supported")
        return load_gguf(cls, file, dtype, (backbone.first, backbone.last_norm, backbone.last, backbone.text_input))
    return backbone.prepare(cls.from_pretrained(folder, subfolder="transformer", torch_dtype=dtype))
