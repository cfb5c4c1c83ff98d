"""PNG by chunks: the pixels of files whose metadata is damaged or too large to be read, and their transparent color."""

import struct
import zlib
from collections.abc import Iterator

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_KEPT = (b"tRNS", b"eXIf")  # of the chunks that are no pixels: transparency, and which side is up
_LARGEST_PROFILE = 16 << 20
_GREY, _RGB = 0, 2


def is_png(data: bytes) -> bool:
    return data.startswith(_SIGNATURE)


def without_metadata(data: bytes) -> tuple[bytes, bytes | None]:
    """Return a PNG with the chunks alone that decide its pixels, and its color profile.

    Critical chunks stay as they are, so that damaged pixels stay damaged. Other chunks with a wrong checksum are left
    out, and so is a profile that cannot be decompressed.
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
        if has_pixels:  # cut off in the metadata behind them: without an end, what is missing would be waited for
            parts.append(_chunk(b"IEND", b""))
    return b"".join(parts), profile


def transparent_color(data: bytes) -> int | tuple[int, ...] | None:
    """Return the grey value or color that is transparent, as it is in pixels of 8 bits (of 16 in a 16-bit grey PNG);
    None where there is none, or the PNG has a palette. Readers compare it unscaled with scaled pixels."""
    depth, kind = data[24], data[25]
    found = next((chunk[8:-4] for name, chunk, is_good in _chunks(data) if name == b"tRNS" and is_good), b"")
    if kind == _GREY and len(found) == 2:
        (grey,) = struct.unpack(">H", found)
        return grey if depth in (8, 16) else grey * 255 // (2**depth - 1)
    if kind == _RGB and len(found) == 6:
        return tuple(value >> (depth - 8) for value in struct.unpack(">3H", found))
    return None


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes, bool]]:
    """Yield (name, the whole chunk, whether its checksum holds) up to the first one that is not whole."""
    place = len(_SIGNATURE)
    while place + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, place)
        chunk = data[place : place + 12 + length]
        if len(chunk) < 12 + length:
            return
        yield name, chunk, zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
        place += 12 + length


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _decompress(data: bytes) -> bytes | None:
    inflate = zlib.decompressobj()
    try:
        whole = inflate.decompress(data, _LARGEST_PROFILE)
    except zlib.error:
        return None
    return whole if inflate.eof else None
