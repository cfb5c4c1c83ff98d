"""Success of an edit that changes the ground of an image: the ground has the asked color, and the object stays."""

from typing import NamedTuple

import torch
from torch import Tensor

from asymflow.oklab import srgb_to_oklab

COLOR_LIMIT = 0.05
"""Largest `color_distance` of a success: under half of the distance between any two named colors of the toy"""
OBJECT_LIMIT = 25.5
"""Largest `object_error` of a success in 8-bit levels: a PSNR of 20 dB"""


class GroundEdit(NamedTuple):
    """Measures of one edit."""

    color_distance: float
    """RMS distance in Oklab of the ground's pixels from the asked color: 0 if all have it, 1 between black and white"""
    object_error: float
    """RMS difference of the object's pixels from the source's, in 8-bit levels: 0 if all stay, at most 255"""

    @property
    def is_success(self) -> bool:
        """Whether both measures are within their limits."""
        return self.color_distance <= COLOR_LIMIT and self.object_error <= OBJECT_LIMIT


def ground_edit(
    edited: Tensor, source: Tensor, color: tuple[int, int, int], ground: Tensor, object: Tensor
) -> GroundEdit:
    """Measure an edit of the ground.

    Args:
        edited: Edited image, sRGB, uint8 (3, H, W).
        source: Image before the edit, sRGB, uint8 (3, H, W).
        color: Asked color of the ground, sRGB in 0 to 255.
        ground: Mask of the ground's pixels, bool (H, W), without the blended pixels at the object's edge.
        object: Mask of the object's pixels, bool (H, W), without them too.

    Returns:
        Both measures.

    Raises:
        ValueError: If the images or masks do not fit, or a mask is empty.
    """
    if edited.shape != source.shape or edited.dtype != torch.uint8 or source.dtype != torch.uint8:
        raise ValueError(
            f"the images are {tuple(edited.shape)} {edited.dtype} and {tuple(source.shape)} {source.dtype}; expected "
            "two of (3, H, W) uint8"
        )
    for name, mask in (("ground", ground), ("object", object)):
        if mask.shape != edited.shape[1:] or not mask.any():
            raise ValueError(
                f"the mask of the {name} is {tuple(mask.shape)} with {int(mask.sum())} pixels; expected "
                f"{tuple(edited.shape[1:])} with at least one"
            )
    asked = torch.tensor(color, dtype=torch.float64)[:, None].expand(3, int(ground.sum()))
    difference = _oklab(edited[:, ground].double()) - _oklab(asked)
    error = edited[:, object].double() - source[:, object].double()
    return GroundEdit(float(difference.square().sum(0).mean().sqrt()), float(error.square().mean().sqrt()))


def _oklab(pixels: Tensor) -> Tensor:
    """Return sRGB pixels (3, N) in [0, 255] in Oklab."""
    return srgb_to_oklab(pixels[None, :, :, None] / 127.5 - 1)[0, :, :, 0]
