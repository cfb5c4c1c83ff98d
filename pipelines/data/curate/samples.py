"""Samples, which the readers of tars, tables and folders yield, and the names of a source's columns."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from pipelines.core.config import Settings, added

LARGEST_FILE = 256 << 20
"""Maximum bytes of one image file; larger ones are decompression bombs"""
LARGEST_TEXT = 4 << 20
"""Maximum bytes of one caption or JSON file"""
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "jfif", "jpe", "apng")
NO_REFERENCE = "reference image is missing"
UNREAD_EXTENSIONS = ("tif", "tiff", "heic", "heif", "avif", "jp2", "j2k", "jxl", "svg", "psd", "ico", "tga", "dng")
"""Extensions of image formats that are not decoded; their images are rejected with the format's name"""
_LITTER = (".DS_Store", "Thumbs.db", "desktop.ini")


class Columns(Settings):
    """Names of the columns in tables and metadata files, or keys in JSON. The defaults are LAION's.

    In a table without the default name of the key, the image or the caption, the usual names are searched.
    """

    key: str = "key"
    """Key in tables, unique within a table; empty: the row number"""
    global_key: str = ""
    """Column, or key in JSON, that is unique over the whole source; of samples with the same value the first is kept;
    empty: a sample is identified by its path in the source, or by its shard and its key or path in the shard"""
    image: str = "jpg"
    """Encoded image bytes in tables, or the image's path in metadata files; else an image is identified by its
    extension"""
    caption: str = "caption"
    """Caption in tables, in metadata files, and in the JSON of images without .txt or .caption"""
    caption_key: str = added("")
    """Column, or key in JSON, by which `captions` are found; needed with them, and only then"""
    references: list[str] = added([])
    """Reference images of an image that is an edit of them, whose caption is the instruction: columns of encoded bytes
    or of paths, or endings of names before the extension (`source` for NAME.source.png beside NAME.png)"""
    sha256: str = "sha256"
    aesthetic: str = "aesthetic"
    punsafe: str = "punsafe"
    pwatermark: str = "pwatermark"
    similarity: str = "similarity"
    label: str = ""
    """Class label, a whole number from 0, for labels=column"""

    @property
    def names(self) -> list[str]:
        """Return all names, each once."""
        single = [name for name in self.model_dump(exclude={"references"}).values() if name]
        return list(dict.fromkeys([*single, *self.references]))


@dataclass
class Sample:
    """One image of a source with its caption and metadata, or the reason why it cannot be used."""

    key: str
    """Path or key within the shard; empty for a problem of the whole shard"""
    image: bytes = b""
    caption: str = ""
    record: dict[str, Any] = field(default_factory=dict)
    """All other metadata, by the source's names"""
    problem: str = ""
    """Reason why it cannot be used, if so"""
    global_key: str = ""
    references: list[bytes] = field(default_factory=list)
    """Encoded reference images, in order"""


def make_sample(key: str, image: bytes, texts: Mapping[str, bytes], columns: Columns) -> Sample:
    """Return the sample of an image with the content of the files beside it.

    Args:
        key: Key of the sample.
        image: The encoded image.
        texts: Content of its caption (`txt`) and of its metadata (`json`), if they exist.
        columns: Names of the keys in the metadata.
    """
    try:
        record = json.loads(texts.get("json", b"{}"))
    except (ValueError, RecursionError):
        return Sample(key, problem="JSON cannot be read")
    if not isinstance(record, dict):
        return Sample(key, problem="JSON is not a mapping")
    try:  # utf-8-sig drops a byte order mark
        caption = texts["txt"].decode("utf-8-sig") if "txt" in texts else record.get(columns.caption)
    except ValueError:
        return Sample(key, problem="caption is not UTF-8")
    return Sample(key, image, text_of(caption), record, global_key=key_of(record.get(columns.global_key)))


def explain_unread(extension: str) -> str:
    """Return the reason for rejecting an image of a format that is not read."""
    return f"image format {extension} is not read"


def split_name(path: str) -> tuple[str, str]:
    """Split a path into (path without the extension, extension in lower case).

    The last dot begins the extension, so that `IMG 2.0.jpg` and `IMG 2.1.jpg` are two images. In a name whose only dot
    is the first character, the stem is the whole name.
    """
    folder, slash, name = path.rpartition("/")
    stem, dot, extension = name.rpartition(".")
    if not dot:
        return path, ""
    return folder + slash + (stem or name), extension.lower()


def split_reference(path: str, references: Sequence[str]) -> tuple[str, str]:
    """Split a path as `split_name`; the extension of a reference image NAME.source.png is `source.png`."""
    stem, extension = split_name(path)
    if extension in IMAGE_EXTENSIONS or extension in UNREAD_EXTENSIONS:
        for name in references:
            if stem.endswith(f".{name}"):
                return stem.removesuffix(f".{name}"), f"{name}.{extension}"
    return stem, extension


def explain_reference(problem: str) -> str:
    """Return the reason for rejecting an image because of a problem of its reference image."""
    return f"reference image: {problem}"


def is_litter(path: str) -> bool:
    """Return whether a file was created by an operating system, in a folder or an archive."""
    *folders, name = path.split("/")
    return name.startswith("._") or name in _LITTER or "__MACOSX" in folders


class SampleKeys:
    """Assigns keys to one shard's samples that are unique over the whole source.

    The key is the shard's path below the source and the sample's path in the shard. img2dataset's own keys begin with
    the number of their shard, so there the folder of the shard is enough: `part-1/000120003` of `part-1/00012.tar`.
    A path that occurs again within the shard gets `#2`, `#3`, ...

    Args:
        shard: Path of the shard below the source, or name of the class if the shard is one class; empty for images
            outside of shards, whose keys are their paths.
        is_class: Whether keys are the class and the path in it.
    """

    def __init__(self, shard: str, is_class: bool = False):
        self.shard = shard
        folder, slash, name = shard.rpartition("/")
        self.folder, number = folder + slash, name.partition(".")[0]
        self.number = number if len(number) == 5 and _is_number(number) and not is_class else ""
        self.repeats: Counter[str] = Counter()

    def __call__(self, path: str) -> str:
        """Return the key of the next sample, given its path in the shard (empty for the shard itself)."""
        own_number = self.number and _is_number(path) and path.startswith(self.number) and path != self.number
        key = self.folder + path if own_number else "/".join(filter(None, [self.shard, path]))
        while self.repeats.setdefault(key, 0):
            self.repeats[key] += 1
            key = f"{key}#{self.repeats[key]}"
        self.repeats[key] = 1
        return key


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def text_of(value: Any) -> str:
    """Return a string as valid UTF-8, since JSON may have lone surrogates; empty for other types."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else ""


def key_of(value: Any) -> str:
    """Return a key as text, empty if missing. Whole floats become integers, since pandas stores numbers as floats."""
    if isinstance(value, float | Decimal) and value == value and abs(value) != float("inf") and value == int(value):
        value = int(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if value is None or value != value or isinstance(value, dict | list):
        return ""
    return text_of(value) if isinstance(value, str) else str(value)
