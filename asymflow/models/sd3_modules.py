"""Modules of the Stable Diffusion 3.5 family: the transformer's first layer over tokens, and the captions' encoders."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPTextModelWithProjection, T5EncoderModel

from asymflow.models.shifted_latents import pack
from asymflow.models.text import PADDINGS, encode_by_length

CLIP_TOKENS = 77
"""Tokens of the two CLIP text encoders"""
LEAST_TOKENS = 1 + CLIP_TOKENS + 1
"""Tokens of the shortest padded embedding: the pooled one, CLIP's, one of T5"""


class CellEmbedding(nn.Module):
    """Patch embedding of diffusers whose convolution over cells is an nn.Linear over tokens, with the same values.

    Args:
        embedding: The PatchEmbed, with a maximum size, whose convolution's stride is its kernel size.
    """

    pos_embed: Tensor

    def __init__(self, embedding: Any):
        super().__init__()
        convolution = embedding.proj
        self.side = embedding.patch_size
        weight = pack(convolution.weight.detach(), self.side)[:, 0]
        self.proj = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device, dtype=weight.dtype)
        self.proj.weight, self.proj.bias = nn.Parameter(weight), convolution.bias
        positions = embedding.pos_embed.unflatten(1, (embedding.pos_embed_max_size, -1))  # (1, M, M, width)
        self.register_buffer("pos_embed", positions)

    def forward(self, latents: Tensor) -> Tensor:
        """Embed the cells of latents.

        Args:
            latents: Latents (B, C, H, W).

        Returns:
            Values of tokens (B, N, width).

        Raises:
            ValueError: If the image is larger than the table of positions.
        """
        tokens = self.proj(pack(latents, self.side))
        largest, (rows, columns) = self.pos_embed.shape[1], (size // self.side for size in latents.shape[-2:])
        if max(rows, columns) > largest:
            raise ValueError(f"a grid of {rows} x {columns} tokens is too large; allowed: {largest} x {largest}")
        top, left = (largest - rows) // 2, (largest - columns) // 2
        positions = self.pos_embed[:, top : top + rows, left : left + columns].flatten(1, 2)
        return (tokens + positions).to(tokens.dtype)


class PooledCaptions:
    """TextEncoder of Stable Diffusion 3.5: pooled CLIP embeddings, tokens of two CLIPs side by side, tokens of T5.

    An embedding is one token with both pooled embeddings, then those of the CLIPs, then those of T5, each padded with
    zeros to the width of T5's. Without padding of captions, CLIP's and T5's padding tokens are left out.

    Args:
        clips: The two CLIP text models, each with its tokenizer.
        t5: T5's encoder and its tokenizer.
        max_tokens: Tokens of an embedding, of which T5 has those that the others leave; at least 79.
        padding: One of `asymflow.models.text.PADDINGS`.

    Raises:
        ValueError: For another padding, or too few tokens.
    """

    def __init__(self, clips: Sequence[tuple[Any, Any]], t5: tuple[Any, Any], max_tokens: int, padding: str = "none"):
        if padding not in PADDINGS:
            raise ValueError(f"padding is {padding!r}; allowed: {', '.join(PADDINGS)}")
        if max_tokens < LEAST_TOKENS:
            raise ValueError(f"max_tokens is {max_tokens}; allowed: {LEAST_TOKENS} or more")
        self.clips, (self.t5, self.t5_tokenizer) = tuple(clips), t5
        self.max_tokens, self.padding = max_tokens, padding
        self.width = self.t5.config.d_model

    @classmethod
    def load(cls, folder: str, device: str, dtype: torch.dtype, max_tokens: int, padding: str) -> "PooledCaptions":
        """Load the text encoders of a pipeline folder.

        Args:
            folder: The pipeline's folder.
            device: Device of the encoders.
            dtype: Type of the encoders.
            max_tokens: Tokens of an embedding; longer captions are cut.
            padding: One of `asymflow.models.text.PADDINGS`.

        Returns:
            The encoder.
        """

        def part(model: Any, suffix: str) -> tuple[Any, Any]:
            encoder = model.from_pretrained(folder, subfolder=f"text_encoder{suffix}", dtype=dtype)
            tokenizer = AutoTokenizer.from_pretrained(folder, subfolder=f"tokenizer{suffix}")
            return encoder.to(device).eval(), tokenizer

        clips = [part(CLIPTextModelWithProjection, suffix) for suffix in ("", "_2")]
        return cls(clips, part(T5EncoderModel, "_3"), max_tokens, padding)

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> list[Tensor]:
        """Return one embedding per caption; see `TextEncoder.encode`.

        Args:
            captions: The captions.

        Returns:
            Embeddings (T_i, E), in the order of the captions.
        """
        return encode_by_length(captions, self._encode)

    def _encode(self, captions: list[str]) -> list[Tensor]:
        pooled, clip, lengths = self._encode_clip(captions)
        if self.padding == "max_length":
            lengths = [CLIP_TOKENS] * len(captions)
        t5 = self._encode_t5(captions, [self.max_tokens - 1 - length for length in lengths])
        rows = zip(pooled, clip, lengths, t5, strict=True)
        return [torch.cat([self._widen(p[None]), self._widen(c[:n]), t]) for p, c, n, t in rows]

    def _encode_clip(self, captions: list[str]) -> tuple[Tensor, Tensor, list[int]]:
        """Return pooled embeddings (B, P), those of all tokens (B, 77, E'), and the numbers of valid ones."""
        pooled, states, lengths = [], [], []
        for model, tokenizer in self.clips:
            options = {"padding": "max_length", "max_length": CLIP_TOKENS, "truncation": True, "return_tensors": "pt"}
            inputs = tokenizer(captions, **options).to(model.device)
            output = model(inputs["input_ids"], output_hidden_states=True)  # causal, so padding changes nothing
            pooled.append(output.text_embeds)
            states.append(output.hidden_states[-2])
            lengths = inputs["attention_mask"].sum(1).tolist()
        return torch.cat(pooled, dim=-1), torch.cat(states, dim=-1), lengths

    def _encode_t5(self, captions: list[str], limits: list[int]) -> list[Tensor]:
        """Return embeddings (T_i, E) of at most `limits[i]` tokens."""
        tokenize = self.t5_tokenizer
        ids = [
            tokenize(caption, truncation=True, max_length=limit)["input_ids"]
            for caption, limit in zip(captions, limits, strict=True)
        ]
        if self.padding == "max_length":  # which the model was trained to attend to
            inputs = tokenize.pad({"input_ids": ids}, padding="max_length", max_length=limits[0], return_tensors="pt")
            return list(self.t5(inputs["input_ids"].to(self.t5.device))[0])
        inputs = tokenize.pad({"input_ids": ids}, return_tensors="pt").to(self.t5.device)
        states = self.t5(inputs["input_ids"], attention_mask=inputs["attention_mask"])[0]
        return [row[: len(own)] for row, own in zip(states, ids, strict=True)]

    def _widen(self, tokens: Tensor) -> Tensor:
        return F.pad(tokens, (0, self.width - tokens.shape[-1]))
