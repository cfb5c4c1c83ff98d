"""Image grids with captions."""

from collections.abc import Mapping, Sequence

import torch
from PIL import Image, ImageDraw
from torch import Tensor


def to_pil_images(images: Tensor) -> list[Image.Image]:
    """Return (B, 3, H, W) sRGB in [-1, 1] as PIL images."""
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(p) for p in pixels]


def grid_of(images: Sequence[Image.Image], columns: int, scale: int = 1, gap: int = 2) -> Image.Image:
    """Return images of one size in a grid on white; `scale` enlarges by whole pixels."""
    width, height = images[0].width * scale, images[0].height * scale
    rows = -(-len(images) // columns)
    canvas = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), "white")
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        place = (gap + column * (width + gap), gap + row * (height + gap))
        canvas.paste(image.resize((width, height), Image.Resampling.NEAREST), place)
    return canvas


def side_by_side(columns: Mapping[str, Sequence[Image.Image]], captions: Sequence[str], scale: int = 2) -> Image.Image:
    """Return an image grid with one row per caption and one titled column per source."""
    names = list(columns)
    flat = [columns[name][row] for row in range(len(captions)) for name in names]
    grid = grid_of(flat, columns=len(names), scale=scale)
    cell = grid.width // len(names)
    text_width = 260
    canvas = Image.new("RGB", (grid.width + text_width, grid.height + 20), "white")
    canvas.paste(grid, (0, 20))
    draw = ImageDraw.Draw(canvas)
    for i, name in enumerate(names):
        draw.text((i * cell + 4, 4), name, fill="black")
    row_height = grid.height / len(captions)
    for i, caption in enumerate(captions):
        draw.multiline_text((grid.width + 8, 20 + i * row_height + 8), _wrap(caption, 40), fill="black")
    return canvas


def thumbnail(image: Image.Image, side: int = 256) -> Image.Image:
    """Return an image reduced to `side` pixels, or enlarged by whole pixels up to it."""
    factor = side // max(image.size)
    if factor:
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    small = image.copy()
    small.thumbnail((side, side))
    return small


def join_horizontally(left: Image.Image, right: Image.Image) -> Image.Image:
    """Return two images side by side, on white."""
    canvas = Image.new("RGB", (left.width + right.width, max(left.height, right.height)), "white")
    canvas.paste(left, (0, 0))
    canvas.paste(right, (left.width, 0))
    return canvas


def join_vertically(images: Sequence[Image.Image]) -> Image.Image:
    """Return images one below the other, on white."""
    canvas = Image.new("RGB", (max(image.width for image in images), sum(image.height for image in images)), "white")
    top = 0
    for image in images:
        canvas.paste(image, (0, top))
        top += image.height
    return canvas


def _wrap(text: str, width: int) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width))
