"""PickScore of transformers' own CLIP classes, at tiny size and with random weights."""

from pathlib import Path


def write_pick_score(folder: Path) -> None:
    """Write the weights into folder/model, tokenizer and image processor into folder/processor."""
    import torch
    from open_clip.tokenizer import bytes_to_unicode
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizerFast

    letters = sorted(bytes_to_unicode().values())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<start_of_text>", "<end_of_text>"]
    tokenizer = CLIPTokenizerFast(
        vocab={word: i for i, word in enumerate(words)}, merges=[], bos_token="<start_of_text>",
        eos_token="<end_of_text>", unk_token="<end_of_text>", pad_token="<end_of_text>",
    )  # fmt: skip
    processor = CLIPProcessor(
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}), tokenizer
    )
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = {**tower, "vocab_size": len(tokenizer), "max_position_embeddings": 24, "initializer_factor": 8.0, **ids}
    vision = {**tower, "image_size": 32, "patch_size": 8, "initializer_factor": 8.0}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "processor")
