"""Loading the latent model's parts from its diffusers folder, and saying clearly what is missing."""

from pathlib import Path
from typing import TYPE_CHECKING

from asymflow.models.backbone import Backbone, Kind
from asymflow.models.latent import ImageEncoder, TextEncoder, TokenGeometry, family_of, published_model
from pipelines.core.config import ConfigError, read_json_setting

if TYPE_CHECKING:
    import torch


def check_base(base: str, parts: tuple[str, ...] = (), *, images: bool = False, text: bool = False) -> None:
    """Raise ConfigError unless `base` is the local pipeline folder of a known family with these parts.

    `images` and `text` add the parts that the family's encoders of pictures and of captions need.
    """
    folder = Path(base)
    if not folder.is_dir():
        raise ConfigError(
            f"base={base!r}: no such folder; download the pipeline there first (FLUX.2 klein Base 9B asks you to "
            "accept its non-commercial licence), or make the demo's with `python jobs/make_toy_base.py`"
        )
    try:
        family = family_of(base)
    except ValueError as error:
        raise ConfigError(f"base={base!r}: {error}") from None
    for part in (*parts, *(family.image_parts if images else ()), *(family.text_parts if text else ())):
        if not (folder / part).is_dir():
            raise ConfigError(f"base={base!r}: it has no {part!r} folder, so it is no whole diffusers pipeline")


def check_kind(model: Kind, backbone: Backbone) -> None:
    """Raise ConfigError unless the family of this transformer supports such a finetuned model."""
    if model not in backbone.adapter_classes:
        allowed = ", ".join(backbone.adapter_classes)
        raise ConfigError(f"model={model}: not supported for a {backbone.transformer}; allowed: {allowed}")


def check_padding(base: str, padding: str) -> None:
    """Raise ConfigError unless the family of `base`, the folder of a known one, takes captions padded so."""
    allowed = family_of(base).paddings
    if padding not in allowed:
        raise ConfigError(f"text_padding={padding}: not supported by base={base!r}; allowed: {', '.join(allowed)}")


PUBLISHED = published_model().geometry
"""Of FLUX.2 klein"""


def read_geometry(base: str) -> TokenGeometry:
    """Return the geometry of tokens that the autoencoder in the base's folder has.

    A folder that is elsewhere, or has no autoencoder, counts as the published model of its name, else as FLUX.2 klein:
    plans need no files, and inputs of a run that do not fit are refused. Raises ConfigError for files that no family
    has.
    """
    if not (Path(base) / "vae").is_dir():
        return published_model(base).geometry
    try:
        return family_of(base).read_geometry(base)
    except ValueError as error:
        raise ConfigError(f"base={base!r}: {error}") from None


def read_patch_size(base: str) -> int | None:
    """Return the patch size of the pixel model on a base, or of a merged pixel model's own folder.

    None where its files do not tell (a base without its autoencoder): then only the adapter does.
    """
    file = Path(base) / "transformer" / "config.json"
    config = read_json_setting(file, f"base={base!r}") if file.is_file() else {}
    if "base_rank" in config:  # a pixel model's
        return config["patch_size"]
    return read_geometry(base).pixels_per_token if (Path(base) / "vae").is_dir() else None


def load_image_encoder(base: str, device: str) -> ImageEncoder:
    return family_of(base).load_image_encoder(base, device, _dtype(device))


def load_text_encoder(base: str, device: str, max_tokens: int, padding: str = "none") -> TextEncoder:
    return family_of(base).load_text_encoder(base, device, _dtype(device), max_tokens, padding)


def _dtype(device: str) -> "torch.dtype":
    """Processors without bfloat16 products emulate them, hundreds of times slower."""
    import torch  # settings read a base's geometry without it

    return torch.bfloat16 if device.startswith("cuda") else torch.float32
