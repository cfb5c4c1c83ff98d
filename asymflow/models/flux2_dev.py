"""FLUX.2 dev as a latent family: klein's autoencoder and transformer, with embedded guidance, and a Mistral 3."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from asymflow.models.backbone import PublishedModel, TokenGeometry
from asymflow.models.flux2_backbone import FLUX2
from asymflow.models.geometry import DEV
from asymflow.models.klein_geometry import read_token_geometry
from asymflow.models.latent import LatentFamily

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from asymflow.models.latent import ImageEncoder, TextEncoder

HIDDEN_STATES = (10, 20, 30)
"""Hidden states of Mistral 3 that are an embedding, side by side"""


def _load_image_encoder(*arguments: Any) -> "ImageEncoder":
    from asymflow.models.klein_encoders import KleinImages  # diffusers: a geometry is read without it

    return KleinImages.load(*arguments)


def _load_text_encoder(
    folder: str, device: str, dtype: "torch.dtype", max_tokens: int, padding: str = "none"
) -> "TextEncoder":
    """Load the text encoder; with `max_length`, padding is where the tokenizer puts it, as in Flux2Pipeline."""
    from diffusers.pipelines.flux2.pipeline_flux2 import format_input
    from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE
    from transformers import AutoProcessor

    from asymflow.models.hidden_states import HiddenStates, load_language_model

    processor = AutoProcessor.from_pretrained(folder, subfolder="tokenizer")

    def tokenize(captions: Sequence[str], length: int, padding: bool | str) -> "Mapping[str, Tensor]":
        return processor.apply_chat_template(
            format_input(prompts=list(captions), system_message=SYSTEM_MESSAGE),
            add_generation_prompt=False,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            padding=padding,
            truncation=True,
            max_length=length,
        )

    model = load_language_model(folder, device, dtype)
    return HiddenStates(model, tokenize, HIDDEN_STATES, max_tokens, padding)


FAMILY = LatentFamily(
    pipelines=("Flux2Pipeline",),
    read_geometry=read_token_geometry,
    image_parts=("vae",),
    text_parts=("text_encoder", "tokenizer"),
    load_image_encoder=_load_image_encoder,
    load_text_encoder=_load_text_encoder,
    backbone=FLUX2,
    published={"FLUX.2-dev": PublishedModel("FLUX.2 dev", DEV, TokenGeometry(16, 128))},
)
