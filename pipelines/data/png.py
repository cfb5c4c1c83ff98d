"""Parse PNG chunks, to decode files whose metadata is damaged or too large, and to find metadata and transparency."""

import struct
import zlib
from collections.abc import Iterator

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_KEPT = (b"tRNS", b"eXIf")  # ancillary chunks to keep: transparency and orientation
_LARGEST_PROFILE = 16 << 20
_GRAY, _RGB = 0, 2


def is_png(data: bytes) -> bool:
    """Return whether data begins with the signature of PNG."""
    return data.startswith(_SIGNATURE)


def has_only_pixels(data: bytes) -> bool:
    """Return whether a PNG has 8 bits per value and no metadata except its resolution, before or after the pixels."""
    return data[24] == 8 and {name for name, _, _ in _chunks(data)} <= {b"IHDR", b"pHYs", b"IDAT", b"IEND"}


def without_metadata(data: bytes) -> tuple[bytes, bytes | None]:
    """Return a PNG with only the chunks that affect its pixels, and its color profile.

    Critical chunks are kept unchanged, so that damaged pixels are still detected. Other chunks with a wrong checksum
    are dropped, and so is a profile that cannot be decompressed.
    """
    parts, profile, has_pixels = [_SIGNATURE], None, False
    for name, chunk, is_good in _chunks(data):
        if not name[0] & 32:  # critical: the first letter is a capital
            has_pixels |= name == b"IDAT"
            parts.append(chunk)
        elif is_good and name in _KEPT:
            parts.append(chunk)
        elif is_good and name == b"iCCP":
            profile = _decompress(chunk[8:-4].partition(b"\0")[2][1:])
        if name == b"IEND":
            break
    else:
        if has_pixels:  # truncated in the metadata after the pixels: add the end, else the decoder fails
            parts.append(_chunk(b"IEND", b""))
    return b"".join(parts), profile


def transparent_color(data: bytes) -> int | tuple[int, ...] | None:
    """Return the transparent gray value or color, scaled to 8-bit pixels (16-bit for a 16-bit grayscale PNG).

    Return None without one or with a palette. Scaling is needed because PIL compares the unscaled value with scaled
    pixels.
    """
    depth, kind = data[24], data[25]
    found = next((chunk[8:-4] for name, chunk, is_good in _chunks(data) if name == b"tRNS" and is_good), b"")
    if kind == _GRAY and len(found) == 2:
        (gray,) = struct.unpack(">H", found)
        return gray if depth in (8, 16) else gray * 255 // (2**depth - 1)
    if kind == _RGB and len(found) == 6:
        return tuple(value >> (depth - 8) for value in struct.unpack(">3H", found))
    return None


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bool]]:
    """Yield (name, complete chunk, whether its checksum is right) up to the first truncated chunk."""
    offset = len(_SIGNATURE)
    while offset + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, offset)
        chunk = data[offset : offset + 12 + length]
        if len(chunk) < 12 + length:
            return
        yield name, chunk, zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
        offset += 12 + length


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _decompress(data: bytes) -> bytes | None:
    inflate = zlib.decompressobj()
    try:
        profile = inflate.decompress(data, _LARGEST_PROFILE)
    except zlib.error:
        return None
    return profile if inflate.eof else None
