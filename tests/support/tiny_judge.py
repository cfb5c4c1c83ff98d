"""A Qwen3-VL folder of the real classes with random weights, laid out as the published ones are."""

import json
from pathlib import Path

from captioner_fixture import CHAT_TEMPLATE, PICTURES, SPECIAL, new_tokenizer  # asymflow before transformers


def write_judge(folder: Path) -> Path:
    """Write half a megabyte, in two seconds; its answers depend on the image and the question."""
    import torch
    from transformers import GenerationConfig, Qwen3VLConfig, Qwen3VLForConditionalGeneration

    tokenizer = new_tokenizer()
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in SPECIAL}
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 2048,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [3, 3, 2]},
            "pad_token_id": ids["<|endoftext|>"], "initializer_range": 0.2,
        },
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32,
            "deepstack_visual_indexes": [0], "num_position_embeddings": 64, "initializer_range": 0.2,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen3VLForConditionalGeneration(config)
    model.generation_config = GenerationConfig(  # as Qwen3-VL-8B-Instruct has it
        do_sample=True, temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.0,
        bos_token_id=ids["<|endoftext|>"], pad_token_id=ids["<|endoftext|>"],
        eos_token_id=[ids["<|im_end|>"], ids["<|endoftext|>"]],
    )  # fmt: skip
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    pictures = {**PICTURES, "patch_size": 16, "min_pixels": 4096, "processor_class": "Qwen3VLProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(pictures))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return folder
