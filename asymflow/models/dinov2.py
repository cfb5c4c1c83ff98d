"""DINOv2 as the frozen encoder of the representation alignment (REPA, reference [70] of the paper)."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as it was trained


class DinoFeatures(nn.Module):
    """Frozen DINOv2 with one feature per patch of the pixel model.

    Args:
        folder: Folder of a Dinov2Model of transformers (facebook/dinov2-base in the paper).

    Raises:
        ValueError: If the folder does not contain one.
    """

    def __init__(self, folder: str):
        super().__init__()
        from transformers import Dinov2Model

        model = Dinov2Model.from_pretrained(check_dinov2(folder), dtype=torch.float32)
        self.model = model.eval().requires_grad_(False)

    @property
    def width(self) -> int:
        """Width of a feature, C."""
        return self.model.config.hidden_size

    @torch.no_grad()
    def forward(self, images: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return the features of images.

        Args:
            images: sRGB images (B, 3, H, W) in [-1, 1].
            grid: Rows and columns of patches, (h, w).

        Returns:
            Features (B, h w, C).
        """
        return tokens_of(self.model, images, grid)


def tokens_of(model: Any, images: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the patch tokens of a Dinov2Model, one per cell of a grid.

    Args:
        model: The model.
        images: sRGB images (B, 3, H, W) in [-1, 1]; resized so that each cell becomes one patch of the model.
        grid: Rows and columns of cells, (h, w).

    Returns:
        Tokens (B, h w, C).
    """
    side = model.config.patch_size
    mean, std = images.new_tensor(_MEAN), images.new_tensor(_STD)
    resized = F.interpolate((images + 1) / 2, (side * grid[0], side * grid[1]), mode="bicubic", antialias=True)
    # bicubic overshoots at edges; the encoder was trained on images, whose values end at 0 and 1
    pixels = (resized.clamp(0, 1) - mean[:, None, None]) / std[:, None, None]
    return model(pixel_values=pixels).last_hidden_state[:, 1:]


def check_dinov2(folder: str) -> str:
    """Check that a folder contains a DINOv2.

    Args:
        folder: The folder.

    Returns:
        The same folder.

    Raises:
        ValueError: If it has no config.json.
    """
    if not (Path(folder) / "config.json").is_file():
        raise ValueError(
            f"there is no DINOv2 in {folder!r}: it needs config.json and model.safetensors, "
            "`hf download facebook/dinov2-base --local-dir FOLDER`"
        )
    return folder
