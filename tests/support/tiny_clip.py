"""CLIP of open_clip's own class, at tiny size and with random weights."""

import json
from pathlib import Path

NAME = "asymflow-tiny-clip"
CONFIG = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def write_tiny_clip(folder: Path, quick_gelu: bool = True) -> Path:
    """Makes the architecture NAME known to open_clip, and writes its weights into a folder, in which they are called as
    on the hub. Returns the file."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    config = folder / "config" / f"{NAME}.json"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(json.dumps({**CONFIG, "quick_gelu": quick_gelu}))
    open_clip.add_model_config(config)
    torch.manual_seed(0)
    model = open_clip.create_model(NAME, pretrained=None)
    with torch.no_grad():
        for parameter in model.parameters():  # so that no part of it can be left out unseen
            parameter.add_(0.1 * torch.randn_like(parameter))
    path = folder / "open_clip_model.safetensors"
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
    return path
