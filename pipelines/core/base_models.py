"""Check the latent model's diffusers folder, and load its image and text encoders."""

from pathlib import Path
from typing import TYPE_CHECKING

from asymflow.models.backbone import Backbone, Kind
from asymflow.models.gguf_base import find_gguf
from asymflow.models.latent import ImageEncoder, TextEncoder, TokenGeometry, family_of, published_model
from pipelines.core.config import ConfigError, read_json_setting

if TYPE_CHECKING:
    import torch


def check_base(base: str, parts: tuple[str, ...] = (), *, images: bool = False, text: bool = False) -> None:
    """Check that `base` is the local pipeline folder of a known model family and has the given parts.

    Args:
        base: Local diffusers folder.
        parts: Names of subfolders that must exist.
        images: Also require the parts of the family's image encoder.
        text: Also require the parts of the family's text encoder.

    Raises:
        ConfigError: The folder is missing, incomplete or of an unknown family.
    """
    folder = Path(base)
    if not folder.is_dir():
        raise ConfigError(
            f"base={base!r}: no such folder; download the pipeline there first (FLUX.2 klein Base 9B requires you "
            "to accept its non-commercial license), or make the demo's with `python jobs/make_toy_base.py`"
        )
    try:
        family = family_of(base)
    except ValueError as error:
        raise ConfigError(f"base={base!r}: {error}") from None
    for part in (*parts, *(family.image_parts if images else ()), *(family.text_parts if text else ())):
        if not (folder / part).is_dir():
            raise ConfigError(f"base={base!r}: it has no {part!r} folder, so the diffusers pipeline is incomplete")


def check_kind(model: Kind, backbone: Backbone) -> None:
    """Raise ConfigError unless the family of this transformer supports this kind of finetuned model."""
    if model not in backbone.adapter_classes:
        allowed = ", ".join(backbone.adapter_classes)
        raise ConfigError(f"model={model}: not supported for a {backbone.transformer}; allowed: {allowed}")


def check_padding(base: str, padding: str) -> None:
    """Raise ConfigError unless the family of `base`, a folder of a known family, supports this padding of captions."""
    allowed = family_of(base).paddings
    if padding not in allowed:
        raise ConfigError(f"text_padding={padding}: not supported by base={base!r}; allowed: {', '.join(allowed)}")


def check_text_tokens(base: str, max_tokens: int) -> None:
    """Raise ConfigError if the text encoder of `base`, a folder of a known family, needs more tokens."""
    least = family_of(base).least_text_tokens
    if max_tokens < least:
        raise ConfigError(f"max_text_tokens={max_tokens}: too few for base={base!r}; allowed: {least} or more")


def check_unquantized(base: str, advice: str) -> None:
    """Check that the transformer of a pipeline is not stored quantized by diffusers.

    Args:
        base: Folder of the pipeline.
        advice: What to do otherwise.

    Raises:
        ConfigError: It is.
    """
    if "quantization_config" in read_json_setting(Path(base) / "transformer" / "config.json", f"base={base!r}"):
        raise ConfigError(f"base={base!r}: its transformer is stored quantized; {advice}")


def check_gguf(base: str, quantization: str | None, zero_stage: int, checkpointing: bool) -> None:
    """Raise ConfigError if the transformer of `base` is a GGUF file that cannot be trained on with these settings."""
    try:
        file = find_gguf(base)
    except ValueError as error:
        raise ConfigError(f"base={base!r}: {error}") from None
    if file is None:
        return
    if quantization:
        raise ConfigError(f"base_quantization={quantization}: {file} is quantized; use base_quantization=null")
    if zero_stage == 3:
        raise ConfigError(f"resources.zero_stage=3: sharding would cut the blocks of {file}; use 0, 1 or 2")
    if not checkpointing:
        raise ConfigError(
            f"resources.gradient_checkpointing=false: the backward pass would keep all weights of {file} in full; "
            "use true"
        )


PUBLISHED = published_model().geometry
"""Token geometry of FLUX.2 klein"""


def read_geometry(base: str) -> TokenGeometry:
    """Return the token geometry of the base's autoencoder.

    Without an autoencoder on this machine, return the geometry of the published model of the folder's name, else that
    of FLUX.2 klein: plans work without the files, and runs check their inputs against it.

    Raises:
        ConfigError: The files match no known model family.
    """
    if not (Path(base) / "vae").is_dir():
        return published_model(base).geometry
    try:
        return family_of(base).read_geometry(base)
    except ValueError as error:
        raise ConfigError(f"base={base!r}: {error}") from None


def read_patch_size(base: str) -> int | None:
    """Return the patch size of the pixel model on a base, or of a merged pixel model in its own folder.

    Return None for a base without an autoencoder; then only the adapter has the patch size.
    """
    file = Path(base) / "transformer" / "config.json"
    config = read_json_setting(file, f"base={base!r}") if file.is_file() else {}
    if "base_rank" in config:  # the folder holds a merged pixel model
        return config["patch_size"]
    return read_geometry(base).pixels_per_token if (Path(base) / "vae").is_dir() else None


def load_image_encoder(base: str, device: str) -> ImageEncoder:
    """Load the base's image encoder, bfloat16 on a GPU and float32 elsewhere."""
    return family_of(base).load_image_encoder(base, device, _dtype(device))


def load_text_encoder(base: str, device: str, max_tokens: int, padding: str = "none") -> TextEncoder:
    """Load the base's text encoder, bfloat16 on a GPU and float32 elsewhere."""
    return family_of(base).load_text_encoder(base, device, _dtype(device), max_tokens, padding)


def _dtype(device: str) -> "torch.dtype":
    """Return bfloat16 on a GPU, else float32: CPUs that emulate bfloat16 products are hundreds of times slower."""
    import torch  # reading a base's geometry does not need it

    return torch.bfloat16 if device.startswith("cuda") else torch.float32
