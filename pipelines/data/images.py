"""Decode and encode images: upright, sRGB, transparent pixels on white."""

import io
import warnings
import zlib
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageCms, ImageOps

from asymflow.oklab import linear_to_srgb, srgb_to_linear
from pipelines.data.png import has_only_pixels, is_png, transparent_color, without_metadata

# A 1 MP target never needs more; larger images are decompression bombs or scans that would exhaust a worker's memory.
MAX_PIXELS = 100_000_000
# Formats in web crawls. PIL reads more, some through external programs, which untrusted data must not reach.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_TOO_MANY, _DAMAGED = "too many pixels", "truncated or corrupt"
_UNREAD = {  # other formats: offset and possible magic bytes
    "tiff": (0, (b"II*\0", b"MM\0*")), "heif or avif": (4, (b"ftyphei", b"ftypmif", b"ftypavi", b"ftypmsf")),
    "jpeg xl": (0, (b"\xff\x0a", b"\0\0\0\x0cJXL ")), "jpeg 2000": (0, (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")),
    "psd": (0, (b"8BPS",)),
}  # fmt: skip
_UPRIGHT = {  # EXIF orientation -> transposition that undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
# Method and quality, which is an effort for lossless files, of each level of libwebp's WebPConfigLosslessPreset
_WEBP_EFFORTS = ((0, 0), (1, 20), (2, 25), (3, 30), (3, 50), (4, 50), (4, 75), (4, 90), (5, 90), (6, 100))
_STORABLE = ("JPEG", "PNG", "WEBP")
_HEADER_FIELDS = {  # of `Image.info`: all others hold metadata, or change the pixels
    "jfif", "jfif_version", "jfif_unit", "jfif_density", "dpi", "aspect", "progressive", "progression", "adobe",
    "adobe_transform", "loop", "background",
}  # fmt: skip


class BadImage(ValueError):
    """Raised for bytes that are not a usable image; the message is the reason written to `rejected/`."""


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image to RGB with EXIF rotation, color profile and transparency applied.

    Raises:
        BadImage: With a short reason: `not an image`, `image format tiff is not read`, `too many pixels`,
            `truncated or corrupt`. Damaged metadata alone does not raise it.
    """
    try:
        return _decode(data, max_pixels=max_pixels)
    except BadImage as error:
        if not is_png(data) or error.args == (_TOO_MANY,):
            raise
    try:
        return _decode(*without_metadata(data), max_pixels=max_pixels)
    except BadImage:
        raise BadImage(_DAMAGED) from None  # the signature is that of a PNG, so it is an image


def _decode(data: bytes, profile: bytes | None = None, *, max_pixels: int) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the size, which is checked below, and damaged EXIF, which is common
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        except Image.DecompressionBombError:
            raise BadImage(_TOO_MANY) from None
        except Exception:  # decoders raise many types: struct.error, SyntaxError, KeyError, ...
            raise BadImage(_explain_unread(data)) from None
        if image.width * image.height > max_pixels:
            raise BadImage(_TOO_MANY)
        try:
            image.load()
            if profile:
                image.info["icc_profile"] = profile
            if image.format == "PNG" and (transparent := transparent_color(data)) is not None:
                image.info["transparency"] = transparent
            return _to_rgb(_turn_upright(image))
        except Exception:
            raise BadImage(_DAMAGED) from None


def _explain_unread(data: bytes) -> str:
    """Return the reason for rejecting bytes that no decoder reads."""
    for name, (offset, signatures) in _UNREAD.items():
        if data.startswith(signatures, offset):
            return f"image format {name} is not read"
    return "not an image"


def _turn_upright(image: Image.Image) -> Image.Image:
    try:
        method = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF raises many types, and the pixels may still be intact
        method = None
    return image.transpose(method) if method is not None else image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "I;16", "I;16B"):  # 16-bit grayscale, which `convert` would clip at 255
        return _sixteen_bits_to_rgb(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        colors = _to_srgb(image.convert("L") if image.mode == "LA" else rgba.convert("RGB"), image.info)
        return Image.composite(colors, Image.new("RGB", image.size, "white"), rgba.getchannel("A"))
    return _to_srgb(image.convert("RGB") if image.mode == "P" else image, image.info)


def _sixteen_bits_to_rgb(image: Image.Image) -> Image.Image:
    levels = np.asarray(image).clip(0, 65535)
    gray = _to_srgb(Image.fromarray((levels / 257).round().astype(np.uint8)), image.info)
    if (transparent := image.info.get("transparency")) is None:
        return gray
    return Image.composite(Image.new("RGB", image.size, "white"), gray, Image.fromarray(levels == transparent))


def _to_srgb(image: Image.Image, info: dict[Any, Any]) -> Image.Image:
    """Apply the color profile if there is one; without one, pixels are sRGB."""
    profile = info.get("icc_profile")
    if profile and image.mode in ("RGB", "L", "CMYK"):
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except (ImageCms.PyCMSError, OSError):
            converted = None  # the profile is damaged, but the pixels may be intact: treat them as sRGB
        if converted:
            return converted
    return image.convert("RGB")


def is_plain(data: bytes) -> bool:
    """Return whether a file that `decode_image` reads can be stored in place of a lossless copy of its pixels.

    It is a JPEG, PNG or WebP of one frame in 8-bit RGB, without EXIF data (hence without orientation), color profile,
    gamma, transparency or other metadata, so that no reader has to convert its pixels; and it takes at most half of
    their bytes, so that it is not much larger than the copy.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in `_decode`
        try:
            image = Image.open(io.BytesIO(data), formats=_STORABLE)
        except Exception:  # another format, or a PNG that is read without its damaged metadata
            return False
    return (
        image.mode == "RGB"
        and image.info.keys() <= _HEADER_FIELDS
        and getattr(image, "n_frames", 1) == 1
        and 2 * len(data) <= 3 * image.width * image.height
        and (image.format != "PNG" or has_only_pixels(data))
    )


def fit_to_size(image: Image.Image, width: int, height: int, linear_light: bool = False) -> Image.Image:
    """Resize with a Lanczos filter so that the image covers (width, height), then center-crop it.

    With `linear_light`, pixels are averaged in linear light instead of in sRGB values.
    """
    if not linear_light:
        return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    to_light, to_code = _light_tables()
    light = to_light[to_array(image)]
    channels = [Image.fromarray(np.ascontiguousarray(light[..., c])) for c in range(3)]
    resized = [np.asarray(ImageOps.fit(c, (width, height), Image.Resampling.LANCZOS)) for c in channels]
    fitted = np.stack(resized, axis=-1)
    return Image.fromarray(to_code[(fitted.clip(0, 1) * (len(to_code) - 1)).round().astype(np.uint16)])


def crop_as_adm(image: Image.Image, side: int) -> Image.Image:
    """Resize and crop to a square as ADM preprocesses ImageNet: box-filter halvings, bicubic resize, center crop."""
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = side / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - side) // 2, (height - side) // 2
    return image.crop((left, top, left + side, top + side))


@cache
def _light_tables() -> tuple[np.ndarray, np.ndarray]:
    """Return the linear light of each sRGB value, and the nearest sRGB value of 65,536 levels of light.

    The tables are not computed on import: a parallel loop of torch in a worker's main thread slows its training thread
    by a third, because OpenMP then counts more threads than CPUs and stops waiting actively.
    """
    light = srgb_to_linear(torch.arange(256) / 255).numpy()
    return light, (linear_to_srgb(torch.arange(65536) / 65535) * 255).round().to(torch.uint8).numpy()


def to_array(image: Image.Image) -> np.ndarray:
    """Return an image as an array (H, W, 3), uint8."""
    return np.asarray(image, dtype=np.uint8)


def encode_png(image: Image.Image) -> bytes:
    """Encode an image as PNG."""
    return encode_image(image, "png")


def encode_image(image: Image.Image, format: str, quality: int = 95, effort: int = 0) -> bytes:
    """Encode an image as lossless `png` or `webp`, or as `jpeg` of a quality (1 to 100) without chroma subsampling.

    Args:
        image: An RGB image.
        format: `png`, `webp` or `jpeg`.
        quality: Quality of jpeg.
        effort: 0 (fastest) to 9 (smallest), for png and webp; the pixels are the same.
    """
    method, webp_quality = _WEBP_EFFORTS[effort]
    options: dict[str, dict[str, Any]] = {
        # run-length encoding only: for photographs smaller and faster than zlib's default strategy at level 1
        "png": {"compress_level": effort} if effort else {"compress_level": 1, "compress_type": zlib.Z_RLE},
        "webp": {"lossless": True, "method": method, "quality": webp_quality},
        "jpeg": {"quality": quality, "subsampling": "4:4:4"},
    }
    buffer = io.BytesIO()
    image.save(buffer, format.upper(), **options[format])
    return buffer.getvalue()
