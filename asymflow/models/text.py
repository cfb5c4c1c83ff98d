"""Captions to the text embeddings of FLUX.2 klein: three hidden states of a Qwen3 side by side."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

HIDDEN_STATES = (9, 18, 27)
MAX_TOKENS = 512
PADDINGS = ("max_length", "none")
"""max_length: every text has the most tokens and the padding is seen, as FLUX.2 klein was trained; none: no padding"""


@torch.no_grad()
def encode_captions(
    text_encoder: Any, tokenizer: Any, captions: Sequence[str], max_tokens: int = MAX_TOKENS, padding: str = "none"
) -> list[Tensor]:
    """Return one embedding (T_i, 3 x width) per caption, on the encoder's device.

    The captions are put into the tokenizer's chat template without thinking, as Flux2KleinPipeline does. The text
    encoder is causal and padding is on the right, so a real token's embedding does not depend on the padding.

    Args:
        text_encoder: a Qwen3ForCausalLM.
        tokenizer: its tokenizer.
        captions: may be empty strings.
        max_tokens: longer captions are cut.
        padding: `none` for T_i real tokens, `max_length` for T_i = `max_tokens` with the padding's embeddings.

    Raises:
        ValueError: another padding.
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
    states = text_encoder(  # not its inner model: a pipeline that offloads hooks into the outer one
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        output_hidden_states=True,
        use_cache=False,
        logits_to_keep=1,  # none are needed, and one token's are the fewest that can be asked for
    ).hidden_states
    embeddings = torch.cat([states[layer] for layer in HIDDEN_STATES], dim=-1)
    lengths = [max_tokens] * len(texts) if whole else inputs["attention_mask"].sum(1).tolist()
    return [e[:n].clone() for e, n in zip(embeddings, lengths, strict=True)]


def pad_embeddings(embeddings: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Embeddings (T_i, E) -> (B, T, E) zero-padded on the right, and a mask (B, T), True for real tokens."""
    lengths = torch.tensor([len(e) for e in embeddings])
    padded = pad_sequence(list(embeddings), batch_first=True)
    return padded, torch.arange(padded.shape[1])[None, :] < lengths[:, None]
