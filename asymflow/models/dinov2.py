"""DINOv2 as the frozen encoder of the representation alignment (REPA, reference [70] of the paper)."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as it was trained


class DinoFeatures(nn.Module):
    """sRGB images (B, 3, H, W) in [-1, 1] to one feature a patch of the pixel model, (B, h w, C).

    `folder` holds a Dinov2Model of transformers (facebook/dinov2-base for the paper). ValueError where it does not.
    """

    def __init__(self, folder: str):
        super().__init__()
        from transformers import Dinov2Model

        model = Dinov2Model.from_pretrained(check_dinov2(folder), dtype=torch.float32)
        self.model = model.eval().requires_grad_(False)

    @property
    def width(self) -> int:
        return self.model.config.hidden_size

    @torch.no_grad()
    def forward(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        return tokens_of(self.model, images, grid)


def tokens_of(model: Any, images: Tensor, grid: tuple[int, int]) -> Tensor:
    """A Dinov2Model's tokens (B, h w, C) of images (B, 3, H, W) in [-1, 1], one for each cell of the grid."""
    side = model.config.patch_size
    mean, std = images.new_tensor(_MEAN), images.new_tensor(_STD)
    resized = F.interpolate((images + 1) / 2, (side * grid[0], side * grid[1]), mode="bicubic", antialias=True)
    # bicubic overshoots at edges; the encoder was trained on images, whose values end at 0 and 1
    pixels = (resized.clamp(0, 1) - mean[:, None, None]) / std[:, None, None]
    return model(pixel_values=pixels).last_hidden_state[:, 1:]


def check_dinov2(folder: str) -> str:
    """The folder, if it holds a DINOv2. ValueError otherwise."""
    if not (Path(folder) / "config.json").is_file():
        raise ValueError(
            f"there is no DINOv2 in {folder!r}: it needs config.json and model.safetensors, "
            "`hf download facebook/dinov2-base --local-dir FOLDER`"
        )
    return folder
