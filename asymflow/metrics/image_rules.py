"""How a picture becomes what Inception sees: by which rule it is brought to 299 pixels, and by which to whole levels.

Both move FID, so both are settings, and part of a protocol.
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
    """Levels in 0...255 of any shape, as uint8. Others, such as a resize's overshoot, are clamped first.

    For a sample x in [-1, 1], of which the level is 127.5 (x + 1), these are the rules in use:
    "truncate_half_up" trunc(127.5 x + 128), "truncate" trunc(127.5 (x + 1)), "round" the nearest, halves to even.

    Raises:
        ValueError: another rule, or a level that is not a number.
    """
    if torch.isnan(levels).any():
        raise ValueError("the levels hold NaN")
    levels = levels.clamp(0, 255)
    if rounding == "truncate_half_up":
        levels = (levels + 0.5).clamp_max(255)  # 255.5 is truncated to 255 as well, where an image is clamped last
    elif rounding == "round":
        levels = levels.round()
    elif rounding != "truncate":
        raise ValueError(f"{rounding!r} is no rule of rounding; there are {', '.join(ROUNDINGS)}")
    return levels.to(torch.uint8)


def prepare(images: Tensor, resize: str, rounding: str) -> Tensor:
    """uint8 (B, 3, H, W) to what the network is given, uint8 too.

    "bicubic": antialiased to 299 x 299, each side by its own factor, clamped, then `to_uint8`; this is FID's.
    "centre_crop": the middle 299 x 299, an odd pixel left at the bottom and the right; pFID's. "none": as it is, a
    square, and the network resizes; ADM's.

    Raises:
        ValueError: another rule, shape or type; a picture that is too small to crop, or no square for "none".
    """
    check_images(images)
    height, width = images.shape[2:]
    if resize == "centre_crop":
        if min(height, width) < SIDE:
            raise ValueError(f"a picture of {height} x {width} has no centre of {SIDE} x {SIDE}")
        top, left = (height - SIDE) // 2, (width - SIDE) // 2
        return images[:, :, top : top + SIDE, left : left + SIDE]
    if resize not in RESIZES:
        raise ValueError(f"{resize!r} is no rule of resizing; there are {', '.join(RESIZES)}")
    if resize == "none":
        if height != width:
            raise ValueError(f"a picture of {height} x {width} would be distorted; crop it to a square first")
        return images
    if height == width == SIDE:
        return images
    levels = F.interpolate(images.double(), (SIDE, SIDE), mode="bicubic", antialias=True, align_corners=False)
    # An area of one level comes out as that level give or take rounding, of which "truncate" would make a level less
    # here and there, on each machine elsewhere.
    return to_uint8(levels if rounding == "round" else levels + _ROUNDING, rounding)
