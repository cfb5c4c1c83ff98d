"""Loading the latent model's parts from its diffusers folder, and saying clearly what is missing."""

from pathlib import Path

import torch

from asymflow.models.latent import ImageEncoder, TextEncoder, family_of
from pipelines.core.config import ConfigError


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


def load_image_encoder(base: str, device: str) -> ImageEncoder:
    return family_of(base).load_image_encoder(base, device, _dtype(device))


def load_text_encoder(base: str, device: str, max_tokens: int) -> TextEncoder:
    return family_of(base).load_text_encoder(base, device, _dtype(device), max_tokens)


def _dtype(device: str) -> torch.dtype:
    """Processors without bfloat16 products emulate them, hundreds of times slower."""
    return torch.bfloat16 if device.startswith("cuda") else torch.float32
