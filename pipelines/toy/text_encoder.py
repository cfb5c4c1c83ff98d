"""The toy's text encoder: a narrow Qwen3, deep enough for the pipeline's hidden states 9, 18 and 27."""

from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen2TokenizerFast, Qwen3Config, Qwen3ForCausalLM

from pipelines.toy.training import adamw, train

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
THINK = ("<think>", "</think>")
CHAT_TEMPLATE = (  # Qwen3's user turn alone: the empty answer that follows it would cost a third of the tokens
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
)


def train_tokenizer(captions: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of 1,024 tokens, with Qwen3's special tokens and chat layout."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=[PAD, START, END, *THINK],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*captions, "user\n", "assistant\n"], trainer)
    return Qwen2TokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=PAD,
        additional_special_tokens=[START, END, *THINK],
        chat_template=CHAT_TEMPLATE,
        padding_side="right",
    )


def new_text_encoder(vocabulary: int) -> Qwen3ForCausalLM:
    """Return the untrained model."""
    torch.manual_seed(1)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=28,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        eos_token_id=2,
        pad_token_id=0,
        bos_token_id=None,
    )
    return Qwen3ForCausalLM(config)


def train_text_encoder(
    tokenizer: PreTrainedTokenizerFast, captions: list[str], folder: Path, steps: int
) -> Qwen3ForCausalLM:
    """Train by next-token prediction on captions inside the chat template."""
    model = new_text_encoder(len(tokenizer))
    texts = [tokenizer.apply_chat_template([{"role": "user", "content": c}], tokenize=False) for c in captions]
    encoded = tokenizer(texts, padding=True, return_tensors="pt")
    ids, mask = encoded["input_ids"], encoded["attention_mask"].bool()

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(ids), (64,), generator=generator)
        logits = model(input_ids=ids[index], attention_mask=mask[index]).logits
        targets = ids[index].masked_fill(~mask[index], -100)
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten())

    return train("text_encoder", model, loss_of, folder, steps, [adamw(model.parameters(), lr=3e-3)], report=dict)
