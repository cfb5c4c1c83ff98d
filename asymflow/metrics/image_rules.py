"""Preparation of images for Inception: rules for resizing to 299 pixels and for rounding to 8-bit levels.

Both change FID, so both are settings and part of a protocol.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from asymflow.metrics.arguments import check_images

SIDE = 299
RESIZES = ("bicubic", "centre_crop", "none")
ROUNDINGS = ("truncate_half_up", "truncate", "round")

_ROUNDING = 1e-9  # of a level, above what float64 loses in a resize


def to_uint8(levels: Tensor, rounding: str) -> Tensor:
    """Round levels to uint8; values outside 0 to 255, such as a resize's overshoot, are clamped first.

    For a sample x in [-1, 1], whose level is 127.5 (x + 1), the rules are: "truncate_half_up" trunc(127.5 x + 128),
    "truncate" trunc(127.5 (x + 1)), "round" the nearest, halves to even.

    Args:
        levels: Levels of any shape.
        rounding: One of ROUNDINGS.

    Returns:
        Levels, uint8, of the same shape.

    Raises:
        ValueError: For another rule, or NaN.
    """
    if torch.isnan(levels).any():
        raise ValueError("the levels hold NaN")
    levels = levels.clamp(0, 255)
    if rounding == "truncate_half_up":
        levels = (levels + 0.5).clamp_max(255)  # 255.5 is truncated to 255 as well, where an image is clamped last
    elif rounding == "round":
        levels = levels.round()
    elif rounding != "truncate":
        raise ValueError(f"{rounding!r} is not a rule of rounding; allowed: {', '.join(ROUNDINGS)}")
    return levels.to(torch.uint8)


def prepare(images: Tensor, resize: str, rounding: str) -> Tensor:
    """Return the input of the network.

    "bicubic": antialiased to 299 x 299, each side by its own factor, clamped, then `to_uint8`; used by FID.
    "centre_crop": the middle 299 x 299, an odd pixel left at the bottom and the right; used by pFID. "none": unchanged,
    a square that the network resizes; used by ADM.

    Args:
        images: sRGB images, uint8 (B, 3, H, W).
        resize: One of RESIZES.
        rounding: One of ROUNDINGS.

    Returns:
        Images, uint8 (B, 3, H', W').

    Raises:
        ValueError: For another rule, shape or type, an image too small to crop, or not a square for "none".
    """
    check_images(images)
    height, width = images.shape[2:]
    if resize == "centre_crop":
        if min(height, width) < SIDE:
            raise ValueError(f"an image of {height} x {width} is too small for the center of {SIDE} x {SIDE}")
        top, left = (height - SIDE) // 2, (width - SIDE) // 2
        return images[:, :, top : top + SIDE, left : left + SIDE]
    if resize not in RESIZES:
        raise ValueError(f"{resize!r} is not a rule of resizing; allowed: {', '.join(RESIZES)}")
    if resize == "none":
        if height != width:
            raise ValueError(f"an image of {height} x {width} would be distorted; crop it to a square first")
        return images
    if height == width == SIDE:
        return images
    levels = F.interpolate(images.double(), (SIDE, SIDE), mode="bicubic", antialias=True, align_corners=False)
    # Rounding errors of the resize would make "truncate" drop a level in areas of one level, at other places on each
    # machine.
    return to_uint8(levels if rounding == "round" else levels + _ROUNDING, rounding)
