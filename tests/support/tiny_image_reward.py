"""ImageReward with random weights at tiny size, under the names of its published checkpoint."""

import json
from pathlib import Path

WIDTH, VISION_WIDTH, WORDS = 16, 24, ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "two", "dogs")
ARCHITECTURE = {
    "vision": {
        "hidden_size": VISION_WIDTH, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3,
        "image_size": 32, "patch_size": 16, "layer_norm_eps": 1e-6,
    },
    "text": {
        "hidden_size": WIDTH, "encoder_hidden_size": VISION_WIDTH, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 48, "vocab_size": len(WORDS),
        "bos_token_id": 2, "sep_token_id": 3, "eos_token_id": 3,
    },
}  # fmt: skip


def new_weights():
    """Return weights by name, with deviation 0.3."""
    import torch

    generator = torch.Generator().manual_seed(0)
    weights = {}

    def add(name, *shape):
        weights[name] = 0.3 * torch.randn(*shape, generator=generator)

    def linear(name, width, out):
        add(f"{name}.weight", out, width)
        add(f"{name}.bias", out)

    def norm(name, width):
        add(f"{name}.weight", width)
        add(f"{name}.bias", width)

    eyes, words = "blip.visual_encoder", "blip.text_encoder"
    add(f"{eyes}.cls_token", 1, 1, VISION_WIDTH)
    add(f"{eyes}.pos_embed", 1, 5, VISION_WIDTH)
    add(f"{eyes}.patch_embed.proj.weight", VISION_WIDTH, 3, 16, 16)
    add(f"{eyes}.patch_embed.proj.bias", VISION_WIDTH)
    norm(f"{eyes}.norm", VISION_WIDTH)
    for i in range(2):
        block = f"{eyes}.blocks.{i}"
        norm(f"{block}.norm1", VISION_WIDTH)
        norm(f"{block}.norm2", VISION_WIDTH)
        linear(f"{block}.attn.qkv", VISION_WIDTH, 3 * VISION_WIDTH)
        linear(f"{block}.attn.proj", VISION_WIDTH, VISION_WIDTH)
        linear(f"{block}.mlp.fc1", VISION_WIDTH, 40)
        linear(f"{block}.mlp.fc2", 40, VISION_WIDTH)
    add(f"{words}.embeddings.word_embeddings.weight", len(WORDS), WIDTH)
    add(f"{words}.embeddings.position_embeddings.weight", 48, WIDTH)
    weights[f"{words}.embeddings.position_ids"] = torch.arange(48)[None]
    norm(f"{words}.embeddings.LayerNorm", WIDTH)
    for i in range(2):
        layer = f"{words}.encoder.layer.{i}"
        for kind, width in (("attention", WIDTH), ("crossattention", VISION_WIDTH)):
            linear(f"{layer}.{kind}.self.query", WIDTH, WIDTH)
            linear(f"{layer}.{kind}.self.key", width, WIDTH)
            linear(f"{layer}.{kind}.self.value", width, WIDTH)
            linear(f"{layer}.{kind}.output.dense", WIDTH, WIDTH)
            norm(f"{layer}.{kind}.output.LayerNorm", WIDTH)
        linear(f"{layer}.intermediate.dense", WIDTH, 32)
        linear(f"{layer}.output.dense", 32, WIDTH)
        norm(f"{layer}.output.LayerNorm", WIDTH)
    linear("mlp.layers.0", WIDTH, 8)
    linear("mlp.layers.2", 8, 1)
    return weights


def write_image_reward(folder: Path) -> None:
    """Write ImageReward.pt, architecture.json, and the tokenizer into folder/tokenizer."""
    import torch
    from transformers import BertTokenizerFast

    folder.mkdir(exist_ok=True)
    torch.save(new_weights(), folder / "ImageReward.pt")
    (folder / "architecture.json").write_text(json.dumps(ARCHITECTURE))
    BertTokenizerFast(vocab={word: i for i, word in enumerate(WORDS)}).save_pretrained(folder / "tokenizer")
