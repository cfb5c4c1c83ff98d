"""HPSv3 on a Qwen2-VL of transformers' own class, at tiny size and with random weights."""

import json

import torch
from captioner_fixture import PICTURES, SPECIAL, new_tokenizer  # asymflow before transformers
from safetensors.torch import save_file

from asymflow.metrics.hps_v3 import FILE

TEXT = "Rate {this} by its prompt: {text_prompt}\nNow: <|Reward|>\n"


def write_base(folder):
    """A tiny Qwen2-VL of the real class: configuration, tokenizer and processor; returns the model."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    tokenizer = new_tokenizer()
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in SPECIAL}
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer) + 9, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 2048,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
            "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config={"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2},
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
    )  # fmt: skip
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor = {**PICTURES, "processor_class": "Qwen2VLProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    torch.manual_seed(0)
    model = Qwen2VLForConditionalGeneration(config)
    model.resize_token_embeddings(len(tokenizer) + 1)  # as the reference does, with its token
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def write_checkpoint(path, model, old=False):
    weights = {name: t.contiguous() for name, t in model.state_dict().items()}
    if old:
        renamed = {}
        for name, tensor in weights.items():
            name = name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")
            renamed[name] = tensor
        weights = renamed
    torch.manual_seed(1)
    for layer, (inputs, outputs) in {0: (32, 1024), 3: (1024, 16), 5: (16, 2)}.items():
        weights[f"rm_head.{layer}.weight"] = torch.randn(outputs, inputs) / inputs**0.5
        weights[f"rm_head.{layer}.bias"] = torch.randn(outputs)
    save_file({name: t.clone() for name, t in weights.items()}, path)


def write_hps_v3(root):
    """`base/`, the checkpoint in the new layout and, as old.safetensors, in the old one, and template.txt."""
    (root / "base").mkdir(parents=True)
    model = write_base(root / "base")
    write_checkpoint(root / FILE, model)
    write_checkpoint(root / "old.safetensors", model, old=True)
    (root / "template.txt").write_text(TEXT)
    return root
