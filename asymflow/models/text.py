"""Captions to the text embeddings of FLUX.2 klein: three hidden states of a Qwen3, concatenated."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

HIDDEN_STATES = (9, 18, 27)
MAX_TOKENS = 512
PADDINGS = ("max_length", "none")
_TOGETHER = 16  # captions; enough to keep a GPU busy
"""max_length: all texts have `max_tokens` tokens and the padding is attended to, as in FLUX.2 klein's training; none:
no padding"""


@torch.no_grad()
def encode_captions(
    text_encoder: Any, tokenizer: Any, captions: Sequence[str], max_tokens: int = MAX_TOKENS, padding: str = "none"
) -> list[Tensor]:
    """Return one embedding per caption.

    The captions are put into the tokenizer's chat template without thinking, as in Flux2KleinPipeline. The text encoder
    is causal and padding is on the right, so the embedding of a token does not depend on the padding.

    Args:
        text_encoder: A Qwen3ForCausalLM.
        tokenizer: Its tokenizer.
        captions: The captions; empty strings are allowed.
        max_tokens: Longer captions are cut.
        padding: `none` for T_i tokens of the caption, `max_length` for T_i = `max_tokens` with padding.

    Returns:
        Embeddings (T_i, E) on the encoder's device; E is three times the encoder's width.

    Raises:
        ValueError: For another padding.
    """
    if padding not in PADDINGS:
        raise ValueError(f"padding is {padding!r}; allowed: {', '.join(PADDINGS)}")
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": caption}], tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        for caption in captions
    ]
    whole = padding == "max_length"
    inputs = tokenizer(
        texts, return_tensors="pt", padding=padding if whole else True, truncation=True, max_length=max_tokens
    )
    inputs = inputs.to(text_encoder.device)
    states = text_encoder(  # not the inner model: offloading hooks into the outer one
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        output_hidden_states=True,
        use_cache=False,
        logits_to_keep=1,  # none are needed; one token is the minimum
    ).hidden_states
    embeddings = torch.cat([states[layer] for layer in HIDDEN_STATES], dim=-1)
    lengths = [max_tokens] * len(texts) if whole else inputs["attention_mask"].sum(1).tolist()
    return [e[:n].clone() for e, n in zip(embeddings, lengths, strict=True)]


def encode_by_length(captions: Sequence[str], encode: Callable[[list[str]], list[Tensor]]) -> list[Tensor]:
    """Encode captions a few at a time, those of similar length together, so that little is padded.

    Args:
        captions: The captions.
        encode: Encodes some of them.

    Returns:
        Embeddings (T_i, E), in the order of the captions.
    """
    embeddings: dict[int, Tensor] = {}
    by_length = sorted(range(len(captions)), key=lambda i: len(captions[i]))
    for start in range(0, len(by_length), _TOGETHER):
        indices = by_length[start : start + _TOGETHER]
        embeddings.update(zip(indices, encode([captions[i] for i in indices]), strict=True))
    return [embeddings[i] for i in range(len(captions))]


def pad_embeddings(embeddings: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Pad embeddings to one length.

    Args:
        embeddings: Embeddings (T_i, E).

    Returns:
        Embeddings (B, T, E), zero-padded on the right, and a mask (B, T), True for valid tokens.
    """
    lengths = torch.tensor([len(e) for e in embeddings])
    padded = pad_sequence(list(embeddings), batch_first=True)
    return padded, torch.arange(padded.shape[1])[None, :] < lengths[:, None]
