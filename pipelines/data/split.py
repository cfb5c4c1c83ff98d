"""Which pictures are held out of training: a pure function of the key, so every step and every rerun agrees."""

import zlib


def is_held_out(key: str, every: int) -> bool:
    """True for about one key in `every`."""
    return zlib.crc32(key.encode()) % every == 0
