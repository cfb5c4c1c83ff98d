"""Picture bytes to pixels, as a person expects them: upright, sRGB, on white where transparent."""

import io
import warnings

import numpy as np
from PIL import Image, ImageCms, ImageOps

# A 1 MP target never needs more; larger headers are bombs or scans that would fill a worker's memory.
MAX_PIXELS = 100_000_000


class BadImage(ValueError):
    """Bytes that are no usable picture; the message is the reason written to `rejected/`."""


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Encoded bytes -> RGB picture with EXIF rotation, colour profile and transparency applied.

    Raises BadImage with a short reason: `not an image`, `too many pixels`, `truncated or corrupt`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is ours
            image = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError:
        raise BadImage("too many pixels") from None
    except Exception:
        raise BadImage("not an image") from None
    if image.width * image.height > max_pixels:
        raise BadImage("too many pixels")
    try:
        image.load()
        image = ImageOps.exif_transpose(image)
        return _to_rgb(image)
    except Exception:
        raise BadImage("truncated or corrupt") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    profile = image.info.get("icc_profile")
    if profile and image.mode in ("RGB", "L", "CMYK"):
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except ImageCms.PyCMSError:
            pass  # a broken profile says nothing about the pixels: read them as sRGB
    return image.convert("RGB")


def fit_to_size(image: Image.Image, width: int, height: int) -> Image.Image:
    """Lanczos resize so that the picture covers (width, height), then centre crop."""
    return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)


def to_array(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8."""
    return np.asarray(image, dtype=np.uint8)


def encode_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
