import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from pipelines.data.images import (
    BadImage,
    crop_as_adm,
    decode_image,
    encode_image,
    encode_png,
    fit_to_size,
    is_plain,
    to_array,
)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(image, kind="PNG", **options):
    picture = decode_image(encoded(image, kind, **options))
    assert picture.mode == "RGB"
    return to_array(picture)


def halves():
    """Red on the left, blue on the right; 16 wide and 8 high."""
    image = Image.new("RGB", (16, 8), "blue")
    image.paste("red", (0, 0, 8, 8))
    return image


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_image_formats(kind):
    pixels = decoded(Image.new("RGB", (8, 8), (200, 100, 50)), kind)
    assert pixels.shape == (8, 8, 3)
    assert abs(pixels - np.array([200.0, 100, 50])).max() < 12


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    pixels = decoded(halves(), "JPEG", exif=exif, quality=95, subsampling=0)
    assert pixels.shape == (16, 8, 3)
    assert pixels[0, 4, 0] > 200 > 60 > pixels[0, 4, 2]
    assert pixels[-1, 4, 2] > 200 > 60 > pixels[-1, 4, 0]


def test_invalid_exif_is_ignored():
    assert decoded(halves(), "JPEG", exif=b"Exif\0\0II*\0garbage").shape == (8, 16, 3)


def test_cmyk():
    pixels = decoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95)
    assert (pixels[..., 0] > 240).all()
    assert (pixels[..., 1:] < 15).all()


@pytest.mark.parametrize("mode", ["L", "1", "P"])
def test_grayscale_and_palette(mode):
    pixels = decoded(Image.new("L", (8, 8), 255).convert(mode))
    assert (pixels == 255).all()
    assert pixels.shape == (8, 8, 3)


def test_sixteen_bit_grayscale_is_scaled():
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    pixels = decoded(Image.fromarray(ramp))
    assert (pixels[..., 0].ravel() == np.arange(256)).all()
    assert (pixels[..., 0] == pixels[..., 1]).all()
    assert (pixels[..., 0] == pixels[..., 2]).all()


def test_transparent_becomes_white():
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((0, 0, 0, 128), (0, 0, 4, 8))
    pixels = decoded(image)
    assert (pixels[:, 4:] == 255).all()
    assert (pixels[:, :4] == 127).all()
    assert (decoded(Image.new("LA", (8, 8), (0, 0))) == 255).all()
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([10, 20, 30])
    assert (decoded(palette, transparency=0) == 255).all()
    assert (decoded(palette) == [10, 20, 30]).all()


def linear_profile():
    """sRGB's primaries with a linear transfer curve: an unmistakable difference."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for channel in (b"rTRC", b"gTRC", b"bTRC"):
        entry = profile.index(channel)
        start = int.from_bytes(profile[entry + 4 : entry + 8], "big")
        profile[start : start + 12] = b"curv" + bytes(8)  # a curve of no points is the identity
    return bytes(profile)


def test_color_profile_is_applied():
    """Linear 128 is 188 in sRGB."""
    profile = linear_profile()
    assert abs(decoded(Image.new("RGB", (8, 8), (128,) * 3), icc_profile=profile) - 188.0).max() <= 2
    half_seen = Image.new("RGBA", (8, 8), (128, 128, 128, 255))
    half_seen.paste((0, 0, 0, 0), (0, 0, 4, 8))
    pixels = decoded(half_seen, icc_profile=profile)
    assert (pixels[:, :4] == 255).all()
    assert abs(pixels[:, 4:] - 188.0).max() <= 2


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_broken_profile_is_ignored(mode):
    image = Image.new("RGB", (8, 8), "white").convert(mode)
    for profile in (b"garbage" * 20, linear_profile()[:300]):
        assert (decoded(image, "JPEG", icc_profile=profile) >= 250).all()


def test_profile_of_another_mode_is_ignored():
    assert (decoded(Image.new("L", (8, 8), 128), icc_profile=linear_profile()) == 128).all()


def reason(data, **options):
    with pytest.raises(BadImage) as caught:
        decode_image(data, **options)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_truncated(kind):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    whole = encoded(noise, kind)
    assert reason(whole[: len(whole) // 2]) in ("truncated or corrupt", "not an image")
    assert reason(whole[:10]) == ("truncated or corrupt" if kind == "PNG" else "not an image")  # a PNG tells at once


def test_corrupt():
    data = bytearray(encoded(Image.linear_gradient("L")))
    data[60:90] = bytes(30)
    assert reason(bytes(data)) == "truncated or corrupt"


def test_too_many_pixels_are_refused_before_they_are_decoded():
    assert reason(encoded(Image.new("1", (200, 200))), max_pixels=39_999) == "too many pixels"
    assert decode_image(encoded(Image.new("1", (200, 200))), max_pixels=40_000).size == (200, 200)
    bomb = bytearray(encoded(Image.new("L", (1, 1))))
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2  # the header claims 3.6 billion
    bomb[29:33] = zlib.crc32(bytes(bomb[12:29])).to_bytes(4, "big")
    assert reason(bytes(bomb)) == "too many pixels"


@pytest.mark.parametrize("data", [b"", b"<html>not found</html>", b"\xff\xd8\xff", bytes(1000)])
def test_not_an_image(data):
    assert reason(data) == "not an image"


def test_formats_that_start_other_programs_are_refused():
    postscript = encoded(Image.new("RGB", (8, 8)), "EPS")
    assert reason(postscript) == "not an image"


@pytest.mark.parametrize(
    ("beginning", "name"), [(b"II*\0", "tiff"), (b"\0\0\0 ftypavif", "heif or avif"), (b"\xff\x0a", "jpeg xl")]
)
def test_formats_that_are_not_read_are_named(beginning, name):
    assert reason(beginning + bytes(100)) == f"image format {name} is not read"


def chunk(name, content, crc=None):
    checksum = zlib.crc32(name + content) if crc is None else crc
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def png_of(depth, kind, row, *more, behind=b""):
    """A PNG of one row of four pixels, with chunks before and behind its pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 1, depth, kind, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0" + row))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + pixels + behind + chunk(b"IEND", b"")


GREY = bytes([0, 50, 128, 255])


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2 << 20))),
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(200 << 20))),
        chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(bytes(2 << 20))),
        chunk(b"tEXt", b"Comment\0text", crc=1),
        chunk(b"eXIf", b"MM\0*", crc=1),
        chunk(b"cHRM", b"x"),
        chunk(b"pHYs", b""),
        chunk(b"iCCP", b"name\0\0" + zlib.compress(bytes(100 << 20))),
        chunk(b"iCCP", b"name\0\0garbage"),
    ],
)
@pytest.mark.parametrize("place", ["before", "behind"])
def test_invalid_metadata_is_ignored(extra, place):
    data = png_of(8, 0, GREY, extra) if place == "before" else png_of(8, 0, GREY, behind=extra)
    assert to_array(decode_image(data))[0, :, 0].tolist() == list(GREY)


def test_png_cut_off_behind_its_pixels():
    whole = png_of(8, 0, GREY, behind=chunk(b"tEXt", b"Comment\0" + bytes(1000)))
    assert to_array(decode_image(whole[:-500]))[0, :, 0].tolist() == list(GREY)


def test_damaged_pixels_stay_damaged_whatever_the_metadata():
    data = bytearray(png_of(8, 0, GREY, chunk(b"tEXt", b"Comment\0text", crc=1)))
    data[data.index(b"IDAT") + 8] ^= 0xFF
    assert reason(bytes(data)) == "truncated or corrupt"


def test_large_profile_is_applied():
    """Linear 128 is 188 in sRGB; the profile has 3 MB of padding."""
    profile = linear_profile() + bytes(3 << 20)
    row = bytes([128] * 12)
    data = png_of(8, 2, row, chunk(b"iCCP", b"name\0\0" + zlib.compress(profile)))
    assert abs(to_array(decode_image(data)) - 188.0).max() <= 2


@pytest.mark.parametrize(
    ("depth", "kind", "row", "transparent", "expected"),
    [
        (16, 0, struct.pack(">4H", 1000, 1001, 0, 65535), struct.pack(">H", 1000), [255, 4, 0, 255]),
        (8, 0, bytes([7, 8, 9, 255]), struct.pack(">H", 7), [255, 8, 9, 255]),
        (4, 0, bytes([0x78, 0x0F]), struct.pack(">H", 7), [255, 136, 0, 255]),
        (2, 0, bytes([0b01100011]), struct.pack(">H", 1), [255, 170, 0, 255]),
        (1, 0, bytes([0b01010000]), struct.pack(">H", 0), [255, 255, 255, 255]),
        (16, 2, struct.pack(">12H", 1000, 1000, 1000, *[2000] * 3, *[0] * 3, *[65535] * 3),
         struct.pack(">3H", 1000, 1000, 1000), [255, 7, 0, 255]),
        (8, 2, bytes([5, 5, 5, 6, 6, 6, 0, 0, 0, 255, 255, 255]), struct.pack(">3H", 5, 5, 5), [255, 6, 0, 255]),
    ],
)  # fmt: skip
def test_transparent_color_of_every_depth_becomes_white(depth, kind, row, transparent, expected):
    pixels = to_array(decode_image(png_of(depth, kind, row, chunk(b"tRNS", transparent))))
    assert pixels[0, :, 0].tolist() == expected


def test_fit_covers_then_crops_the_centre():
    fitted = to_array(fit_to_size(halves(), 8, 8))
    assert fitted.shape == (8, 8, 3)
    assert (fitted[:, :2] == [255, 0, 0]).all()
    assert (fitted[:, -2:] == [0, 0, 255]).all()
    assert fit_to_size(Image.new("RGB", (30, 70)), 32, 16).size == (32, 16)


def test_png_is_lossless():
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (16, 16, 3), np.uint8))
    assert (to_array(decode_image(encode_png(noise))) == to_array(noise)).all()


@pytest.mark.parametrize(("width", "height"), [(300, 200), (128, 128), (40, 90), (1024, 768)])
def test_the_square_of_adm(width, height):
    """Against the recipe written out: boxes of two by two, one bicubic resize, the centre."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
    found = crop_as_adm(image, 64)
    assert found.size == (64, 64)
    halved = image
    while min(halved.size) >= 128:
        pixels = np.asarray(halved, float)[: halved.height // 2 * 2, : halved.width // 2 * 2]
        boxes = pixels.reshape(pixels.shape[0] // 2, 2, pixels.shape[1] // 2, 2, 3).mean((1, 3))
        halved = Image.fromarray(np.floor(boxes + 0.5).astype(np.uint8))
    scale = 64 / min(halved.size)
    resized = halved.resize((round(halved.width * scale), round(halved.height * scale)), Image.Resampling.BICUBIC)
    left, top = (resized.width - 64) // 2, (resized.height - 64) // 2
    expected = np.asarray(resized, int)[top : top + 64, left : left + 64]
    assert abs(np.asarray(found, int) - expected).max() <= 4  # roundings of halves, each time


def smooth(mode="RGB", size=(32, 32)):
    """Smooth, so that each format takes less than half of the raw bytes."""
    ramp = np.add.outer(np.arange(size[1]), np.arange(size[0])).astype(np.uint8)
    return Image.fromarray(np.stack([ramp, ramp // 2, 255 - ramp], -1)).convert(mode)


@pytest.mark.parametrize(
    ("kind", "options"), [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {})]
)
def test_a_plain_file_has_the_pixels_that_any_reader_sees(kind, options):
    data = encoded(smooth(), kind, dpi=(72, 72), **options)
    assert is_plain(data)
    assert (to_array(Image.open(io.BytesIO(data))) == to_array(decode_image(data))).all()


def oriented():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"exif": oriented()}),
        ("PNG", {"exif": oriented()}),
        ("WEBP", {"exif": oriented()}),
        ("JPEG", {"icc_profile": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()}),
        ("JPEG", {"comment": b"by whom"}),
        ("PNG", {"transparency": (0, 0, 255)}),
        ("PNG", {"compress_level": 0}),  # larger than a lossless copy
        ("GIF", {}),
        ("BMP", {}),
    ],
)
def test_files_that_readers_would_have_to_convert_are_not_plain(kind, options):
    assert not is_plain(encoded(smooth(), kind, **options))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16"])
def test_only_rgb_is_plain(mode):
    image = Image.new(mode, (32, 32))
    assert not is_plain(encoded(image, "JPEG" if mode == "CMYK" else "PNG"))


def test_an_animation_and_metadata_after_the_pixels_are_not_plain():
    frames = [smooth(), smooth().rotate(90)]
    assert not is_plain(encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:]))
    plain = encoded(smooth(), "PNG")
    text = b"tEXtAuthor\0name"
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    assert is_plain(plain)
    assert not is_plain(plain[:-12] + chunk + plain[-12:])


def test_sixteen_bit_color_is_not_plain():
    header = struct.pack(">IIBBBBB", 32, 32, 16, 2, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(32 * (1 + 32 * 6)))), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in parts]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
    assert decode_image(data).mode == "RGB"
    assert not is_plain(data)


@pytest.mark.parametrize("format", ["png", "webp"])
def test_more_effort_gives_smaller_files_of_the_same_pixels(format):
    tile = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    image = Image.fromarray(np.tile(tile, (6, 6, 1)))
    files = [encode_image(image, format, effort=effort) for effort in (0, 9)]
    assert len(files[0]) > len(files[1])
    assert all((to_array(decode_image(data)) == to_array(image)).all() for data in files)
