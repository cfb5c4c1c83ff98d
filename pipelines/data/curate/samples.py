"""Samples of a source: what the readers of tars, tables and folders return, and what the source calls its columns."""

from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from pipelines.core.config import Settings

LARGEST_FILE = 256 << 20
"""Bytes of one image; no image is so large, and a bomb would be"""
LARGEST_TEXT = 4 << 20
"""Bytes of one caption or JSON file"""
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "jfif", "jpe", "apng")
UNREAD_EXTENSIONS = ("tif", "tiff", "heic", "heif", "avif", "jp2", "j2k", "jxl", "svg", "psd", "ico", "tga", "dng")
"""Images in formats that are not decoded: each is rejected under its format's name"""


class Columns(Settings):
    """What the source calls things: columns of parquet shards, keys of a tar's JSON. The defaults are LAION's."""

    key: str = "key"
    """Of parquet shards, unique within a shard; empty: the row's number"""
    global_key: str = ""
    """Column, or key of a tar's JSON, that is unique over the whole source: of two samples with one value the first is
    kept; empty: a sample is identified by its shard and its key or path in it"""
    image: str = "jpg"
    """Column of encoded bytes in parquet shards; in tars an image is known by its extension"""
    caption: str = "caption"
    """Of parquet shards, and of a tar without .txt members"""
    sha256: str = "sha256"
    aesthetic: str = "aesthetic"
    punsafe: str = "punsafe"
    pwatermark: str = "pwatermark"
    similarity: str = "similarity"
    label: str = ""
    """Number of the class, from 0, where `labels` is column"""


@dataclass
class Sample:
    """One image of a source with its caption and scores, or the reason why it cannot be used."""

    key: str
    """Its path or key within the shard; empty for a problem of the whole shard"""
    image: bytes = b""
    caption: str = ""
    record: dict[str, Any] = field(default_factory=dict)
    """Everything else that the source has about it, by the source's names"""
    problem: str = ""
    global_key: str = ""


class SampleKeys:
    """Keys of one shard's samples, each different, and different from those of every other shard.

    The key is the shard's path below the source and the sample's path in the shard. img2dataset's own keys begin with
    the number of their shard, so there the folder of the shard is enough: `part-1/000120003` of `part-1/00012.tar`.
    A path that occurs again within the shard gets `#2`, `#3`, ...

    Args:
        shard: Path of the shard below the source, or name of the class where a shard is one.
        is_class: Keys are the class and the path in it.
    """

    def __init__(self, shard: str, is_class: bool = False):
        self.shard = shard
        folder, slash, name = shard.rpartition("/")
        self.folder, number = folder + slash, name.partition(".")[0]
        self.number = number if len(number) == 5 and _is_number(number) and not is_class else ""
        self.repeats: Counter[str] = Counter()

    def __call__(self, path: str) -> str:
        """Return the key of the next sample, given its path in the shard (empty: the shard itself)."""
        own_number = self.number and _is_number(path) and path.startswith(self.number) and path != self.number
        key = self.folder + path if own_number else f"{self.shard}/{path}" if path else self.shard
        while self.repeats.setdefault(key, 0):
            self.repeats[key] += 1
            key = f"{key}#{self.repeats[key]}"
        self.repeats[key] = 1
        return key


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def text_of(value: Any) -> str:
    """Return a string that parquet can hold: JSON may have half a surrogate pair. Empty for what is not a string."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def key_of(value: Any) -> str:
    """Return a key as text, or an empty string for a missing one. pandas turns whole numbers into floats."""
    if isinstance(value, float | Decimal) and value == value and abs(value) != float("inf") and value == int(value):
        value = int(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if value is None or value != value or isinstance(value, dict | list):
        return ""
    return text_of(value) if isinstance(value, str) else str(value)
