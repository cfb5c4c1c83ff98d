"""Chunks of PNG; what decoding makes of them is in test_images.py."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pipelines.data.png import is_png, transparent_color, without_metadata


def chunk(name, content, crc=None):
    checksum = zlib.crc32(name + content) if crc is None else crc
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def png_of(kind, *more, depth=8, behind=b""):
    """A PNG of one pixel, with chunks before and behind its pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, depth, kind, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0" + bytes(8)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + pixels + behind + chunk(b"IEND", b"")


PLAIN = png_of(0)


@pytest.mark.parametrize(("data", "expected"), [(PLAIN, True), (b"\xff\xd8\xff", False), (b"", False)])
def test_the_signature_tells_a_png(data, expected):
    assert is_png(data) == expected


def test_only_chunks_of_the_pixels_are_kept():
    transparency, orientation = chunk(b"tRNS", b"\0\7"), chunk(b"eXIf", b"MM\0*")
    data = png_of(0, chunk(b"tEXt", b"Comment\0text"), transparency, orientation, chunk(b"pHYs", b""))
    assert without_metadata(data) == (png_of(0, transparency, orientation), None)


def test_ancillary_chunks_with_a_wrong_checksum_are_dropped_and_critical_ones_kept():
    damaged = PLAIN.replace(chunk(b"IDAT", zlib.compress(b"\0" + bytes(8))), chunk(b"IDAT", b"x", crc=1))
    assert without_metadata(png_of(0, chunk(b"tRNS", b"\0\7", crc=1))) == (PLAIN, None)
    assert without_metadata(damaged) == (damaged, None)


def test_a_profile_is_decompressed_or_dropped():
    good, bad = (chunk(b"iCCP", b"name\0\0" + content) for content in (zlib.compress(b"profile"), b"garbage"))
    assert without_metadata(png_of(2, good)) == (png_of(2), b"profile")
    assert without_metadata(png_of(2, bad)) == (png_of(2), None)


def test_a_file_cut_off_behind_its_pixels_gets_its_end():
    cut_off = png_of(0, behind=chunk(b"tEXt", bytes(1000)))[:-500]
    assert without_metadata(cut_off) == (PLAIN, None)


@pytest.mark.parametrize(
    ("kind", "depth", "content", "expected"),
    [
        (0, 8, b"\0\7", 7),
        (0, 16, b"\1\7", 263),
        (0, 2, b"\0\1", 85),
        (2, 8, b"\0\1\0\2\0\3", (1, 2, 3)),
        (2, 16, b"\1\0\2\0\3\0", (1, 2, 3)),
        (3, 8, b"\0\1", None),
        (0, 8, b"\0", None),
    ],
)
def test_the_transparent_color_is_scaled_to_the_pixels(kind, depth, content, expected):
    assert transparent_color(png_of(kind, chunk(b"tRNS", content), depth=depth)) == expected
    assert transparent_color(png_of(kind, depth=depth)) is None


def test_pixels_of_a_real_file_survive():
    noise, buffer = np.random.default_rng(0).integers(0, 256, (9, 7, 4), np.uint8), io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG", dpi=(72, 72))
    data, _ = without_metadata(buffer.getvalue())
    assert (np.asarray(Image.open(io.BytesIO(data))) == noise).all()
    assert len(data) < len(buffer.getvalue())
