"""Sets of images, sampled here or found elsewhere."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from asymflow.metrics.protocol import fingerprint
from pipelines.core import storage
from pipelines.core.config import ConfigError
from pipelines.data.images import decode_image, encode_png, to_array
from pipelines.evaluate.found_images import image_files, match_images
from pipelines.evaluate.prompts import Generation

T = TypeVar("T")
REAL = "real"
"""Name of the set of real images"""


@dataclass(frozen=True)
class ImageSet:
    """Images by key, with the protocol that identifies them."""

    id: str
    files: Mapping[str, str]
    """{key: URI}, in order"""
    protocol: Mapping[str, Any]


def keys_in(folder: str) -> set[str]:
    """Return the keys of the images in a folder."""
    return {PurePosixPath(uri).stem for uri in storage.list_files(folder, ".png")}


def in_batches(items: Sequence[T], size: int) -> list[Sequence[T]]:
    """Return the items in batches of `size`."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def store_images(encoded: Iterable[bytes], protocol: Mapping[str, Any], count: int, root: str) -> ImageSet:
    """Return real images, each stored as a PNG; `encoded` is read only if some are missing."""
    folder = storage.join(root, "pictures", fingerprint(protocol))
    files = {f"{i:06}": storage.join(folder, f"{i:06}.png") for i in range(count)}
    cached = keys_in(folder)
    if not files.keys() <= cached:
        for (key, uri), data in zip(files.items(), encoded, strict=True):
            if key not in cached:
                storage.write_bytes(uri, encode_png(decode_image(data)))
    return ImageSet(fingerprint(protocol), files, protocol)


def load_found_images(uri: str, generations: Sequence[Generation], repeats: int, root: str) -> ImageSet:
    """Match images from elsewhere with the generations; grids are split and stored. Raises ConfigError."""
    match = match_images(uri, generations, repeats)
    start = len(storage.absolute(uri)) + 1
    positions = {str(position): file[start:] for position, file in sorted(match.files.items())}
    protocol = {"pictures": storage.fingerprint(uri), "matched": fingerprint(positions)}
    if not match.grids:
        files = {generation.key: match.files[divmod(generation.index, repeats)] for generation in generations}
        return ImageSet(fingerprint(protocol), files, protocol)
    protocol["cut"] = "2x2"
    folder = storage.join(root, "pictures", fingerprint(protocol))
    files = {generation.key: storage.join(folder, f"{generation.key}.png") for generation in generations}
    cached = keys_in(folder)
    for (position, _), grid in match.files.items():
        own = generations[position * repeats : (position + 1) * repeats]
        if not {generation.key for generation in own} <= cached:
            for generation, part in zip(own, _cut(grid), strict=True):
                storage.write_bytes(files[generation.key], encode_png(part))
    return ImageSet(fingerprint(protocol), files, protocol)


def _cut(uri: str) -> list[Image.Image]:
    """Return the four images of a grid, row by row. Raises ConfigError for one that does not divide."""
    grid = decode_image(storage.read_bytes(uri))
    width, height = grid.width // 2, grid.height // 2
    if grid.width % 2 or grid.height % 2:
        raise ConfigError(f"pictures: {uri} of {grid.width}x{grid.height} is not a grid of two by two images")
    corners = [(x, y) for y in (0, height) for x in (0, width)]
    return [grid.crop((x, y, x + width, y + height)) for x, y in corners]


def reference_images(uri: str) -> ImageSet:
    """Return a folder's images, of any number and size. Raises ConfigError if there are none."""
    files = image_files(uri)
    if not files:
        raise ConfigError(f"reference.source={uri!r}: contains no images")
    protocol = {"reference": storage.fingerprint(uri)}
    return ImageSet(fingerprint(protocol), {f"{i:06}": file for i, file in enumerate(files)}, protocol)


def load_image(uri: str) -> Tensor:
    """Return an image as uint8 (3, H, W). Raises BadImage."""
    pixels = to_array(decode_image(storage.read_bytes(uri)))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)
