"""What metrics that look at pictures are called with."""

from collections.abc import Sequence

import torch
from torch import Tensor


def check_images(images: Tensor) -> None:
    """ValueError unless uint8 (B, 3, H, W)."""
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8:
        raise ValueError(f"images are {images.dtype} {tuple(images.shape)}; expected uint8 (B, 3, H, W)")


def check_pairs(images: Tensor, prompts: Sequence[str]) -> None:
    """ValueError unless such images, and a prompt for each."""
    check_images(images)
    if len(prompts) != len(images):
        raise ValueError(f"{len(images)} images need as many prompts; got {len(prompts)}")
