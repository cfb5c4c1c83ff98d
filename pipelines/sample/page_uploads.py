"""Images that visitors of the demo page send: their checks, and the folder that stores them for a while."""

import io
import math
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageOps

from asymflow.diffusers_pipeline.images import read_images
from pipelines.core.config import ConfigError

MAX_BYTES = 16 << 20
"""Maximum size of an uploaded file"""
MAX_PIXELS = 1 << 24
"""Maximum height times width of an uploaded image"""
MAX_ASPECT = 4
"""Maximum ratio of the sides of an uploaded image"""
MAX_REFERENCES = 4
"""Maximum number of reference images"""
FORMATS = ("PNG", "JPEG", "WEBP")
"""Formats of uploaded images"""
_CANVAS = 512


def read_upload(file: str | bytes | None, name: str) -> Image.Image:
    """Decode an uploaded image.

    Args:
        file: path or bytes of the file; None if there is none.
        name: name of the image in the form.

    Returns:
        The upright image, RGB, or RGBA if it has transparency.

    Raises:
        ConfigError: there is no file, or it is not a small enough still image; before its pixels are decoded.
    """
    if not file:
        raise ConfigError(f"{name}: missing; upload an image")
    size = len(file) if isinstance(file, bytes) else Path(file).stat().st_size
    if size > MAX_BYTES:
        raise ConfigError(f"{name}: the file has {size} bytes; at most {MAX_BYTES} are allowed")
    try:
        with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
            opened = Image.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=FORMATS)
        with opened as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ConfigError(f"{name}: has {width}x{height} pixels; at most {MAX_PIXELS} are allowed")
            if max(image.size) > MAX_ASPECT * min(image.size):
                raise ConfigError(f"{name}: is {width}x{height}; one side may be at most {MAX_ASPECT} times the other")
            if getattr(image, "is_animated", False):
                raise ConfigError(f"{name}: is an animation; upload a still image")
            return read_images([ImageOps.exif_transpose(image)], name)[0]
    except ConfigError:
        raise
    except Image.DecompressionBombError:
        raise ConfigError(f"{name}: has too many pixels; at most {MAX_PIXELS} are allowed") from None
    except ValueError as error:
        raise ConfigError(str(error)) from None
    except (OSError, SyntaxError):  # PIL's own of files that are cut off, damaged or of another format
        raise ConfigError(f"{name}: not a readable image; allowed formats: {', '.join(FORMATS)}") from None


def read_references(files: Sequence[tuple[str, str | None]] | None, area: int) -> tuple[Image.Image, ...]:
    """Decode reference images.

    Args:
        files: (path, caption) of each file.
        area: maximum pixels of a reference; larger ones are scaled down.

    Returns:
        The images.

    Raises:
        ConfigError: there are none or too many, or one is not a valid image.
    """
    if not files or len(files) > MAX_REFERENCES:
        raise ConfigError(f"references: {len(files or ())} images; give 1 to {MAX_REFERENCES}")
    images = [read_upload(path, f"references[{place}]") for place, (path, _) in enumerate(files)]
    return tuple(_fit(image, area) for image in images)


def read_mask(layer: bytes | None, size: tuple[int, int]) -> Image.Image:
    """Decode the painted layer of the mask editor.

    Args:
        layer: PNG of the layer; what is opaque is painted.
        size: width and height of the image.

    Returns:
        Hard mask of mode L and that size: 255 where it is painted, else 0.

    Raises:
        ConfigError: nothing is painted, or the layer is not a valid image.
    """
    painted = read_upload(layer, "mask").convert("RGBA").getchannel("A") if layer else None
    if painted is None or painted.getbbox() is None:
        raise ConfigError("mask: nothing is painted; paint over the part to change")
    mask = painted.resize(size, Image.Resampling.BILINEAR).point(lambda value: 255 * (value > 127))
    if mask.getbbox() is None:
        raise ConfigError("mask: less than a pixel is painted; use a larger brush")
    return mask


def canvas_of(image: Image.Image) -> Image.Image:
    """Return an image as the background of the mask editor: its longer side has 512 pixels."""
    scale = _CANVAS / max(image.size)
    resample = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), resample)


def sampled_size(image: Image.Image, area: int, patch_size: int) -> tuple[int, int]:
    """Return the size at which an image is sampled: its own, or scaled down to an area.

    Args:
        image: the image.
        area: maximum pixels, up to rounding.
        patch_size: side of a patch in pixels.

    Returns:
        Height and width, the nearest multiples of the patch size.
    """
    scale = min(1.0, math.sqrt(area / (image.width * image.height)))
    height, width = (max(1, round(side * scale / patch_size)) * patch_size for side in (image.height, image.width))
    return height, width


def _fit(image: Image.Image, area: int) -> Image.Image:
    height, width = sampled_size(image, area, 1)
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.LANCZOS)


class PageStore:
    """The page's folder: uploads and results, removed after an hour and when the page ends."""

    def __init__(self, folder: Path, max_bytes: int = 1 << 30, seconds: float = 3600):
        self.folder, self.max_bytes, self.seconds = folder, max_bytes, seconds

    def has_room(self) -> bool:
        """Remove old files, and return whether the others leave room for an upload."""
        total, oldest = 0, time.time() - self.seconds
        for path in self.folder.rglob("*"):
            try:
                status = path.stat()
                if path.is_file() and status.st_mtime < oldest:
                    path.unlink()
                else:
                    total += status.st_size
            except FileNotFoundError:
                continue  # Gradio moved it meanwhile
        return total + MAX_BYTES <= self.max_bytes
