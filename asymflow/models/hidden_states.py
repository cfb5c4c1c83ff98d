"""Text encoder of the families whose embeddings are hidden states of a language model."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel

from asymflow.models.text import PADDINGS, encode_by_length

Tokenize = Callable[[Sequence[str], int, bool | str], Mapping[str, Tensor]]
"""(captions, max_tokens, padding of the tokenizer): `input_ids` and `attention_mask` (B, T)"""


class HiddenStates:
    """TextEncoder whose embeddings are hidden states of a language model, one layer or several side by side.

    Args:
        model: The language model, without its head.
        tokenize: Puts captions into the family's prompt and tokenizes them.
        layers: Indices of the hidden states; -1 is the last one, after the norm.
        max_tokens: Longer captions are cut.
        padding: One of `paddings`.
        skipped: Tokens at the start of each prompt that are left out of the embedding, beyond `max_tokens`.
        paddings: Allowed ones of `asymflow.models.text.PADDINGS`.

    Raises:
        ValueError: For another padding.
    """

    def __init__(
        self,
        model: Any,
        tokenize: Tokenize,
        layers: Sequence[int],
        max_tokens: int,
        padding: str = "none",
        skipped: int = 0,
        paddings: Sequence[str] = PADDINGS,
    ):
        if padding not in paddings:
            raise ValueError(f"padding is {padding!r}; allowed: {', '.join(paddings)}")
        self.model, self.tokenize, self.layers, self.skipped = model, tokenize, tuple(layers), skipped
        self.max_tokens, self.padding = max_tokens, padding
        self.width = len(self.layers) * model.config.get_text_config().hidden_size

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> list[Tensor]:
        """Return one embedding per caption; see `TextEncoder.encode`.

        Args:
            captions: The captions.

        Returns:
            Embeddings (T_i, E), in the order of the captions.
        """
        return encode_by_length(captions, self._encode)

    def _encode(self, captions: Sequence[str]) -> list[Tensor]:
        whole = self.padding == "max_length"
        inputs = self.tokenize(captions, self.max_tokens + self.skipped, "max_length" if whole else True)
        ids, mask = (inputs[name].to(self.model.device) for name in ("input_ids", "attention_mask"))
        states = self.model(
            input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False
        ).hidden_states
        rows = torch.cat([states[layer] for layer in self.layers], dim=-1)
        valid = [row if whole else row[kept] for row, kept in zip(rows, mask.bool(), strict=True)]
        return [row[self.skipped :].clone() for row in valid]


class WindowedStates(HiddenStates):
    """HiddenStates whose captions are padded to multiples of a window, which belongs to the embedding.

    The position of padding is 1. As the model is causal, an embedding does not depend on the other captions' windows.

    Args:
        *arguments: As in HiddenStates.
        window: Tokens of a window; `tokenize` pads to a multiple of it.
        **options: As in HiddenStates.
    """

    def __init__(self, *arguments: Any, window: int, **options: Any):
        super().__init__(*arguments, **options)
        self.window = window

    def _encode(self, captions: Sequence[str]) -> list[Tensor]:
        inputs = self.tokenize(captions, self.max_tokens, True)
        ids, mask = (inputs[name].to(self.model.device) for name in ("input_ids", "attention_mask"))
        positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids).masked_fill(mask == 0, 1)
        states = self.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, output_hidden_states=True, use_cache=False
        ).hidden_states
        rows = torch.cat([states[layer] for layer in self.layers], dim=-1)
        windows = [-(-length // self.window) * self.window for length in mask.sum(1).tolist()]
        return [row[: min(window, self.max_tokens)].clone() for row, window in zip(rows, windows, strict=True)]


def load_language_model(folder: str, device: str, dtype: torch.dtype) -> Any:
    """Load the language model of a pipeline folder, without its head.

    Args:
        folder: The pipeline's folder.
        device: Device of the model.
        dtype: Type of the model.

    Returns:
        The model, in evaluation mode.
    """
    return AutoModel.from_pretrained(folder, subfolder="text_encoder", dtype=dtype).to(device).eval()
