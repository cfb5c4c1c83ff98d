"""Canvas that a pixel model samples for an edit: a region of the image, at a size of whole patches."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image, ImageChops
from torch import Tensor
from torch.nn.functional import pad

from asymflow.pipeline_arguments import check_count, choose_size


@dataclass(frozen=True)
class Canvas:
    """Region of an image and the size at which it is sampled.

    An image keeps its pixels unless another size is given: its right and bottom borders are repeated up to whole
    patches, and what was added is cut off again.
    """

    region: tuple[int, int, int, int]
    """Left, top, right and bottom of the region in the image"""
    content: tuple[int, int]
    """Height and width of the region on the canvas"""
    size: tuple[int, int]
    """Height and width of the canvas, multiples of the patch size"""

    @classmethod
    def choose(
        cls,
        image_size: tuple[int, int],
        height: int | None,
        width: int | None,
        patch_size: int,
        region: tuple[int, int, int, int] | None = None,
    ) -> "Canvas":
        """Return the canvas of an image.

        Args:
            image_size: Width and height of the image.
            height: Height to sample at; None: that of the image.
            width: Width to sample at, likewise.
            patch_size: Side of a patch in pixels.
            region: Left, top, right and bottom of the region; None: the image.

        Returns:
            The canvas.

        Raises:
            ValueError: If only one of height and width is given, or one is not a multiple of the patch size.
        """
        region = region or (0, 0, *image_size)
        own = (region[3] - region[1], region[2] - region[0])
        whole = (image_size[1], image_size[0])
        if height is not None or width is not None:
            content = choose_size(height, width, whole, whole, patch_size)
            return cls(region, content, content)
        full = (_whole_patches(whole[0], patch_size), _whole_patches(whole[1], patch_size))
        return cls(region, whole, full) if own == whole else cls(region, full, full)

    def resize(self, image: Image.Image) -> Image.Image:
        """Return the region of an image at its size on the canvas, unchanged if the sizes are equal.

        Args:
            image: The image.

        Returns:
            The region.
        """
        image = image.crop(self.region)
        size = self.content[::-1]
        return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)

    def read(self, images: Sequence[Image.Image], device: torch.device) -> Tensor:
        """Return images that `resize` returned as a tensor on the canvas.

        Args:
            images: RGB images, or masks of mode L.
            device: Device of the tensor.

        Returns:
            Values (B, C, H, W) in [0, 1], float32.
        """
        values = VaeImageProcessor.numpy_to_pt(VaeImageProcessor.pil_to_numpy(list(images))).to(device, torch.float32)
        return pad(values, (0, self.size[1] - self.content[1], 0, self.size[0] - self.content[0]), mode="replicate")

    def cut(self, images: Tensor) -> Tensor:
        """Return images of the canvas without what was added to the region.

        Args:
            images: Images (B, C, H, W).

        Returns:
            Images (B, C, *content).
        """
        return images[..., : self.content[0], : self.content[1]]

    def place(self, sample: Image.Image, image_size: tuple[int, int]) -> Image.Image:
        """Return a sample at its place in an image that is otherwise black.

        Args:
            sample: RGB image of the size of `content`.
            image_size: Width and height of the image.

        Returns:
            An RGB image of that size.
        """
        left, top, right, bottom = self.region
        if sample.size != (right - left, bottom - top):
            sample = sample.resize((right - left, bottom - top), Image.Resampling.LANCZOS)
        placed = Image.new("RGB", image_size)
        placed.paste(sample, (left, top))
        return placed


def masked_region(
    masks: Sequence[Image.Image], padding: int, height: int | None, width: int | None
) -> tuple[int, int, int, int]:
    """Return the region around what is masked in any of the masks, as diffusers does.

    Args:
        masks: Images of mode L.
        padding: Pixels around it, `padding_mask_crop`.
        height: Height to sample at; None: that of the image.
        width: Width to sample at, likewise.

    Returns:
        Left, top, right and bottom; the aspect ratio is near that of height and width, where the image allows.

    Raises:
        ValueError: If the padding is not an integer of at least 0, or nothing is masked.
    """
    if padding != 0 or isinstance(padding, bool):
        check_count("padding_mask_crop", padding)
    union = masks[0]
    for mask in masks[1:]:
        union = ImageChops.lighter(union, mask)
    if union.getbbox() is None:
        raise ValueError("mask_image is black everywhere: with padding_mask_crop a part of it must be white")
    return VaeImageProcessor.get_crop_region(union, width or union.width, height or union.height, padding)


def _whole_patches(side: int, patch_size: int) -> int:
    return -(-side // patch_size) * patch_size
