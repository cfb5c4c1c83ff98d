"""Arguments of metrics on images: checked, and as PIL images."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor


def check_images(images: Tensor) -> None:
    """Check images.

    Args:
        images: The images.

    Raises:
        ValueError: Unless they are uint8 (B, 3, H, W).
    """
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8:
        raise ValueError(f"images are {images.dtype} {tuple(images.shape)}; expected uint8 (B, 3, H, W)")


def check_pairs(images: Tensor, prompts: Sequence[str]) -> None:
    """Check images and their prompts.

    Args:
        images: uint8 images (B, 3, H, W).
        prompts: One prompt per image.

    Raises:
        ValueError: For other images, or another number of prompts.
    """
    check_images(images)
    if len(prompts) != len(images):
        raise ValueError(f"{len(images)} images need as many prompts; got {len(prompts)}")


def to_pil_images(images: Tensor) -> list[Image.Image]:
    """Convert images to PIL, for the preprocessing of models that were trained with it.

    Args:
        images: sRGB images, uint8 (B, 3, H, W), on any device.

    Returns:
        RGB images.
    """
    return [Image.fromarray(image.permute(1, 2, 0).cpu().numpy()) for image in images]
