"""Images that a user edits: their modes and sizes, and the exact composite of an image and a sample."""

from typing import Any

import numpy as np
from PIL import Image

from asymflow.pipeline_arguments import check_references

_WIDER_THAN_8_BITS = ("I", "F")
"""First letters of PIL's modes with more than 8 bits per channel"""


def read_images(images: Any, name: str = "image") -> list[Image.Image]:
    """Return images to edit as RGB, or as RGBA if they have transparency: gray and palette images keep their colors.

    Args:
        images: A PIL image, or a list of images of one size.
        name: Name of the argument.

    Returns:
        RGB and RGBA images.

    Raises:
        ValueError: If there are none, one is not an image of 8 bits per channel, or the sizes differ.
    """
    if images is None:
        raise ValueError(f"{name} is missing; give a PIL image, or a list of one per prompt")
    check_references(images, name)
    found = images if isinstance(images, list) else [images]
    for place, image in enumerate(found):
        if image.mode.startswith(_WIDER_THAN_8_BITS):
            raise ValueError(f"{name}[{place}] has mode {image.mode}; convert it to 8 bits per channel, such as RGB")
        if image.size != found[0].size:
            raise ValueError(f"{name}[{place}] is {_size(image)}, but {name}[0] is {_size(found[0])}; give one size")
    return [image.convert("RGBA" if image.has_transparency_data else "RGB") for image in found]


def read_masks(masks: Any, size: tuple[int, int]) -> list[Image.Image]:
    """Return masks as gray images: 255, white, is sampled; 0, black, is kept; gray is blended.

    Args:
        masks: A PIL image, or a list.
        size: Width and height of the images.

    Returns:
        Images of mode L.

    Raises:
        ValueError: If there are none, one is not an image of 8 bits per channel, or its size is another one.
    """
    found = [mask.convert("L") for mask in read_images(masks, "mask_image")]
    if found[0].size != size:
        raise ValueError(f"mask_image is {_size(found[0])}, but image is {size[0]}x{size[1]}; give a mask of its size")
    return found


def over_white(image: Image.Image) -> Image.Image:
    """Return an image as RGB, transparent parts on white.

    Args:
        image: An RGB or RGBA image.

    Returns:
        The RGB image.
    """
    if image.mode == "RGB":
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def with_alpha_of(original: Image.Image, sample: Image.Image) -> Image.Image:
    """Return a sample with the transparency of the image that it was made from.

    Args:
        original: An RGB or RGBA image.
        sample: An RGB image of the same size.

    Returns:
        An image of the original's mode.
    """
    if original.mode == "RGBA":
        sample = sample.copy()
        sample.putalpha(original.getchannel("A"))
    return sample


def composite(original: Image.Image, sample: Image.Image, mask: Image.Image) -> Image.Image:
    """Blend an opaque sample into an image by a mask, in 8 bits: where the mask is 0, each byte is the image's.

    Args:
        original: An RGB or RGBA image.
        sample: An RGB image of the same size.
        mask: Its weight, an image of mode L.

    Returns:
        An image of the original's mode; the sampled parts are opaque.
    """
    weight = np.asarray(mask, np.int64)[..., None]
    old = np.asarray(original, np.int64)
    alpha = old[..., 3:] if original.mode == "RGBA" else np.full_like(weight, 255)
    kept, new = (255 - weight) * alpha, weight * 255
    total = np.maximum(kept + new, 1)
    color = (new * np.asarray(sample, np.int64) + kept * old[..., :3] + total // 2) // total
    found = np.concatenate([color, (kept + new + 127) // 255], axis=-1)
    result = np.where(weight == 0, old, found[..., : old.shape[-1]])  # also the hidden color of transparent pixels
    return Image.fromarray(result.astype(np.uint8), original.mode)


def expand_canvas(
    image: Image.Image, left: int = 0, top: int = 0, right: int = 0, bottom: int = 0, overlap: int = 0
) -> tuple[Image.Image, Image.Image]:
    """Return a larger image and the mask of what was added, for outpainting by inpainting.

    Args:
        image: The image.
        left: Pixels to add at the left.
        top: Pixels to add at the top.
        right: Pixels to add at the right.
        bottom: Pixels to add at the bottom.
        overlap: Width in pixels of a soft edge of the mask, inside the image, at each side that was extended.

    Returns:
        The image, whose border is repeated outwards, and its mask of mode L.

    Raises:
        ValueError: If it is not an image of 8 bits per channel, a number of pixels is not a whole number of at least 0,
            nothing is added, or the soft edges leave nothing of the image.
    """
    (source,) = read_images([image])
    sides = {"left": left, "top": top, "right": right, "bottom": bottom, "overlap": overlap}
    for name, pixels in sides.items():
        if isinstance(pixels, bool) or not isinstance(pixels, int) or pixels < 0:
            raise ValueError(f"{name} is {pixels!r}; it must be an integer of at least 0")
    if not left + top + right + bottom:
        raise ValueError("left, top, right, bottom: all are 0; give the pixels to add at one side or more")
    soft = [overlap if side else 0 for side in (left, top, right, bottom)]
    if soft[0] + soft[2] >= source.width or soft[1] + soft[3] >= source.height:
        raise ValueError(f"overlap is {overlap}; it must leave a part of the image, which is {_size(source)}")
    around = ((top, bottom), (left, right))
    extended = np.pad(np.asarray(source), (*around, (0, 0)), mode="edge")
    rows = _kept(source.height, soft[1], soft[3])[:, None]
    weight = 255 - np.rint(255 * rows * _kept(source.width, soft[0], soft[2])).astype(np.uint8)
    mask = np.pad(weight, around, constant_values=255)
    return Image.fromarray(extended, source.mode), Image.fromarray(mask, "L")


def _kept(length: int, before: int, after: int) -> Any:
    """Return the weights of an image along one side, which fall to 0 over the soft edges."""
    place = np.arange(length)
    rising = (place + 1) / (before + 1) if before else np.ones(length)
    falling = (length - place) / (after + 1) if after else np.ones(length)
    return np.minimum(np.minimum(rising, falling), 1)


def _size(image: Image.Image) -> str:
    return f"{image.width}x{image.height}"
