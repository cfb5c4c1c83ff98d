"""Image bytes to pixels, as a person expects them: upright, sRGB, on white where transparent."""

import io
import warnings
import zlib
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageCms, ImageOps

from asymflow.oklab import linear_to_srgb, srgb_to_linear
from pipelines.data.png import is_png, transparent_color, without_metadata

# A 1 MP target never needs more; larger headers are bombs or scans that would fill a worker's memory.
MAX_PIXELS = 100_000_000
# What web crawls hold. PIL reads much more, some of it through outside programs, and none of that is wanted here.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_TOO_MANY, _DAMAGED = "too many pixels", "truncated or corrupt"
_UNREAD = {  # what files of other formats begin with, at a place
    "tiff": (0, (b"II*\0", b"MM\0*")), "heif or avif": (4, (b"ftyphei", b"ftypmif", b"ftypavi", b"ftypmsf")),
    "jpeg xl": (0, (b"\xff\x0a", b"\0\0\0\x0cJXL ")), "jpeg 2000": (0, (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")),
    "psd": (0, (b"8BPS",)),
}  # fmt: skip
_UPRIGHT = {  # EXIF orientation -> how it is undone
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


class BadImage(ValueError):
    """Bytes that are no usable image; the message is the reason written to `rejected/`."""


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image to RGB with EXIF rotation, color profile and transparency applied.

    Raises:
        BadImage: With a short reason: `not an image`, `image format tiff is not read`, `too many pixels`,
            `truncated or corrupt`. Damaged metadata alone is no reason.
    """
    try:
        return _decode(data, max_pixels=max_pixels)
    except BadImage as error:
        if not is_png(data) or error.args == (_TOO_MANY,):
            raise
    try:
        return _decode(*without_metadata(data), max_pixels=max_pixels)
    except BadImage:
        raise BadImage(_DAMAGED) from None  # it begins as a PNG does, so it is an image


def _decode(data: bytes, profile: bytes | None = None, *, max_pixels: int) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of size, where the limit is ours, and of garbled EXIF, which is common
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        except Image.DecompressionBombError:
            raise BadImage(_TOO_MANY) from None
        except Exception:  # decoders raise whatever their parsing runs into: struct.error, SyntaxError, KeyError, ...
            raise BadImage(_why_not(data)) from None
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


def _why_not(data: bytes) -> str:
    for name, (place, beginnings) in _UNREAD.items():
        if data.startswith(beginnings, place):
            return f"image format {name} is not read"
    return "not an image"


def _turn_upright(image: Image.Image) -> Image.Image:
    try:
        method = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # parsing of garbled EXIF raises anything; it says nothing about the pixels
        method = None
    return image.transpose(method) if method is not None else image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "I;16", "I;16B"):  # 16-bit greyscale, which `convert` would clip at 255
        return _sixteen_bits_to_rgb(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        whole = image.convert("RGBA")
        colours = _to_srgb(image.convert("L") if image.mode == "LA" else whole.convert("RGB"), image.info)
        return Image.composite(colours, Image.new("RGB", image.size, "white"), whole.getchannel("A"))
    return _to_srgb(image.convert("RGB") if image.mode == "P" else image, image.info)


def _sixteen_bits_to_rgb(image: Image.Image) -> Image.Image:
    levels = np.asarray(image).clip(0, 65535)
    grey = _to_srgb(Image.fromarray((levels / 257).round().astype(np.uint8)), image.info)
    if (transparent := image.info.get("transparency")) is None:
        return grey
    return Image.composite(Image.new("RGB", image.size, "white"), grey, Image.fromarray(levels == transparent))


def _to_srgb(image: Image.Image, info: dict[Any, Any]) -> Image.Image:
    """Apply the colour profile, if there is one; without one pixels are sRGB."""
    profile = info.get("icc_profile")
    if profile and image.mode in ("RGB", "L", "CMYK"):
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except (ImageCms.PyCMSError, OSError):
            converted = None  # a broken profile says nothing about the pixels: read them as sRGB
        if converted:
            return converted
    return image.convert("RGB")


def fit_to_size(image: Image.Image, width: int, height: int, linear_light: bool = False) -> Image.Image:
    """Lanczos resize so that the picture covers (width, height), then centre crop.

    With `linear_light` the light is averaged, not the sRGB values that code it.
    """
    if not linear_light:
        return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    light_of, code_of = _light_tables()
    light = light_of[to_array(image)]
    channels = [Image.fromarray(np.ascontiguousarray(light[..., c])) for c in range(3)]
    resized = [np.asarray(ImageOps.fit(c, (width, height), Image.Resampling.LANCZOS)) for c in channels]
    fitted = np.stack(resized, axis=-1)
    return Image.fromarray(code_of[(fitted.clip(0, 1) * (len(code_of) - 1)).round().astype(np.uint16)])


def crop_as_adm(image: Image.Image, side: int) -> Image.Image:
    """A square, as ADM prepares ImageNet: halved by boxes while it is twice too large, then bicubic, and the centre."""
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = side / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - side) // 2, (height - side) // 2
    return image.crop((left, top, left + side, top + side))


@cache
def _light_tables() -> tuple[np.ndarray, np.ndarray]:
    """Light of each sRGB value, and the nearest sRGB value of 65,536 levels of light.

    Not made at import: a parallel loop of torch in a worker's main thread costs its training thread a third of its
    speed, since OpenMP then counts more threads than processors and no longer waits for work actively.
    """
    light = srgb_to_linear(torch.arange(256) / 255).numpy()
    return light, (linear_to_srgb(torch.arange(65536) / 65535) * 255).round().to(torch.uint8).numpy()


def to_array(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8."""
    return np.asarray(image, dtype=np.uint8)


def encode_png(image: Image.Image) -> bytes:
    return encode_image(image, "png")


def encode_image(image: Image.Image, format: str, quality: int = 95) -> bytes:
    """`png` and `webp` without loss, `jpeg` of a quality (1 to 100) without subsampling of colour."""
    options: dict[str, dict[str, Any]] = {
        # run lengths only: on photographs smaller and twice as fast as zlib's own search for repeats
        "png": {"compress_level": 1, "compress_type": zlib.Z_RLE},
        "webp": {"lossless": True, "method": 0, "quality": 0},  # here quality is effort
        "jpeg": {"quality": quality, "subsampling": "4:4:4"},
    }
    buffer = io.BytesIO()
    image.save(buffer, format.upper(), **options[format])
    return buffer.getvalue()
