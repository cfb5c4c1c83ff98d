"""CLIP-FlanT5 and its vision model, of transformers' own classes, at tiny size and with random weights."""

import json

import torch

TEXT = "You are shown <image>\nUser: {question} Answer: "


def write_tokenizer(folder):
    """T5's own class on a unigram model of letters; </s> ends each text."""
    from transformers import T5TokenizerFast

    letters = [chr(i) for i in range(33, 127)] + ["\u2581", "\u2581Yes", "<unk>"]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0)] + [(c, -3.0) for c in letters if c != "<unk>"]
    tokenizer = T5TokenizerFast(vocab=vocabulary, extra_ids=0)
    tokenizer.save_pretrained(folder)
    return tokenizer


def write_models(root):
    """CLIP-FlanT5 and its vision model, of transformers' classes, laid out as the published ones are."""
    from safetensors.torch import save_file
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        CLIPVisionModel,
        T5Config,
        T5ForConditionalGeneration,
    )

    (root / "t5").mkdir(parents=True)
    tokenizer = write_tokenizer(root / "t5")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    torch.manual_seed(0)
    vision = CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=28, patch_size=14, projection_dim=8))
    for parameter in vision.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    vision.save_pretrained(root / "vision")
    side = {"height": 28, "width": 28}
    CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=side).save_pretrained(root / "vision")
    config = T5Config(
        vocab_size=len(tokenizer) + 3, d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0,
    )  # fmt: skip
    t5 = T5ForConditionalGeneration(config)
    for parameter in t5.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    t5.lm_head.weight.data.mul_(0.1)  # so that no answer is next to impossible
    weights = {name: t.clone().contiguous() for name, t in t5.state_dict().items()}
    for layer, (inputs, outputs) in {0: (16, 24), 2: (24, 24)}.items():
        weights[f"mm_projector.{layer}.weight"] = torch.randn(outputs, inputs) / inputs**0.5
        weights[f"mm_projector.{layer}.bias"] = torch.randn(outputs)
    save_file(weights, root / "t5" / "model.safetensors", {"format": "pt"})
    settings = {**config.to_dict(), "model_type": "clip_t5", "architectures": ["CLIPT5ForConditionalGeneration"]}
    settings |= {"mm_hidden_size": 16, "mm_vision_tower": "openai/clip-vit-large-patch14-336"}
    (root / "t5" / "config.json").write_text(json.dumps(settings))
    (root / "template.txt").write_text(TEXT)
