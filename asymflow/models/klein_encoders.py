"""FLUX.2 klein's encoders: its whitened autoencoder, and the Qwen3 that encodes its captions."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AutoencoderKLFlux2
from torch import Tensor
from transformers import AutoTokenizer, Qwen3ForCausalLM

from asymflow.models.autoencoder import decode_latents, encode_images
from asymflow.models.klein_geometry import token_geometry
from asymflow.models.text import HIDDEN_STATES, encode_by_length, encode_captions


class KleinImages:
    """ImageEncoder of FLUX.2 klein; d is 128 in the published models.

    Args:
        autoencoder: FLUX.2's autoencoder.
    """

    def __init__(self, autoencoder: AutoencoderKLFlux2):
        self.autoencoder = autoencoder
        self.pixels_per_token, self.token_width = token_geometry(autoencoder.config)

    @classmethod
    def load(cls, folder: str, device: str, dtype: torch.dtype) -> "KleinImages":
        """Load the autoencoder of a pipeline folder.

        Args:
            folder: The pipeline's folder.
            device: Device of the autoencoder.
            dtype: Type of the autoencoder.

        Returns:
            The encoder.
        """
        autoencoder = AutoencoderKLFlux2.from_pretrained(folder, subfolder="vae", dtype=dtype)
        return cls(autoencoder.to(device).eval())

    def encode(self, images: Tensor) -> Tensor:
        """Encode images; see `ImageEncoder.encode`.

        Args:
            images: sRGB images (B, 3, H, W) in [-1, 1].

        Returns:
            z_0 tokens (B, N, d), row by row, in the autoencoder's type.
        """
        return encode_images(self.autoencoder, images.to(self.autoencoder.device, self.autoencoder.dtype))

    def decode(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Decode latent tokens; see `ImageEncoder.decode`.

        Args:
            tokens: Latent tokens (B, h w, d).
            grid: Rows and columns of tokens, (h, w).

        Returns:
            sRGB images (B, 3, H, W) in [-1, 1], float32.
        """
        tokens = tokens.to(self.autoencoder.device, self.autoencoder.dtype)
        return decode_latents(self.autoencoder, tokens, grid).float()


class KleinText:
    """TextEncoder of FLUX.2 klein; E is 12,288 in the 9B model.

    Args:
        text_encoder: A Qwen3ForCausalLM.
        tokenizer: Its tokenizer.
        max_tokens: Longer captions are cut.
        padding: One of `asymflow.models.text.PADDINGS`.
    """

    def __init__(self, text_encoder: Qwen3ForCausalLM, tokenizer: Any, max_tokens: int, padding: str = "none"):
        self.text_encoder, self.tokenizer = text_encoder, tokenizer
        self.max_tokens, self.padding = max_tokens, padding
        self.width = len(HIDDEN_STATES) * text_encoder.config.hidden_size

    @classmethod
    def load(cls, folder: str, device: str, dtype: torch.dtype, max_tokens: int, padding: str = "none") -> "KleinText":
        """Load the text encoder of a pipeline folder.

        Args:
            folder: The pipeline's folder.
            device: Device of the encoder.
            dtype: Type of the encoder.
            max_tokens: Longer captions are cut.
            padding: One of `asymflow.models.text.PADDINGS`.

        Returns:
            The encoder.
        """
        text_encoder = Qwen3ForCausalLM.from_pretrained(folder, subfolder="text_encoder", dtype=dtype)
        tokenizer = AutoTokenizer.from_pretrained(folder, subfolder="tokenizer")
        return cls(text_encoder.to(device).eval(), tokenizer, max_tokens, padding)

    def encode(self, captions: Sequence[str]) -> list[Tensor]:
        """Return one embedding per caption; see `TextEncoder.encode`.

        Args:
            captions: The captions.

        Returns:
            Embeddings (T_i, E), in the order of the captions.
        """
        return encode_by_length(
            captions,
            lambda some: encode_captions(self.text_encoder, self.tokenizer, some, self.max_tokens, self.padding),
        )
