"""FLUX.2 klein as a latent family. Its encoders are imported when they are loaded."""

from typing import TYPE_CHECKING, Any

from asymflow.models.backbone import PublishedModel, TokenGeometry
from asymflow.models.flux2_backbone import FLUX2
from asymflow.models.geometry import KLEIN_4B, KLEIN_9B
from asymflow.models.klein_geometry import read_token_geometry
from asymflow.models.latent import LatentFamily

if TYPE_CHECKING:
    from asymflow.models.latent import ImageEncoder, TextEncoder


def _load_image_encoder(*arguments: Any) -> "ImageEncoder":
    from asymflow.models.klein_encoders import KleinImages  # diffusers: a geometry is read without it

    return KleinImages.load(*arguments)


def _load_text_encoder(*arguments: Any) -> "TextEncoder":
    from asymflow.models.klein_encoders import KleinText

    return KleinText.load(*arguments)


FAMILY = LatentFamily(
    pipelines=("Flux2KleinPipeline",),
    read_geometry=read_token_geometry,
    image_parts=("vae",),
    text_parts=("text_encoder", "tokenizer"),
    load_image_encoder=_load_image_encoder,
    load_text_encoder=_load_text_encoder,
    backbone=FLUX2,
    published={
        "FLUX.2-klein-base-9B": PublishedModel("FLUX.2 klein Base 9B", KLEIN_9B, TokenGeometry(16, 128)),
        "FLUX.2-klein-base-4B": PublishedModel("FLUX.2 klein Base 4B", KLEIN_4B, TokenGeometry(16, 128)),
    },
    pixel_pipeline=True,
)
