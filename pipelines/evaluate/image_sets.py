"""Pictures by the names that they are known by, drawn here or found elsewhere."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, TypeVar

import torch
from torch import Tensor

from asymflow.metrics.protocol import fingerprint
from pipelines.core import storage
from pipelines.core.config import ConfigError
from pipelines.data.images import decode_image, encode_png, to_array
from pipelines.evaluate.prompts import Shot

T = TypeVar("T")
REAL = "real"
"""The name of the set that models' pictures are compared with"""


@dataclass(frozen=True)
class PictureSet:
    """Pictures, and by what they are known."""

    id: str
    files: Mapping[str, str]
    """{key: URI}, in order"""
    protocol: Mapping[str, Any]


def keys_in(folder: str) -> set[str]:
    return {PurePosixPath(uri).stem for uri in storage.list_files(folder, ".png")}


def in_batches(items: Sequence[T], size: int) -> list[Sequence[T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def store_pictures(encoded: Iterable[bytes], protocol: Mapping[str, Any], count: int, root: str) -> PictureSet:
    """Real pictures, which lie in other files, as files of their own; `encoded` is read only where some are missing."""
    folder = storage.join(root, "pictures", fingerprint(protocol))
    files = {f"{i:06}": storage.join(folder, f"{i:06}.png") for i in range(count)}
    standing = keys_in(folder)
    if not files.keys() <= standing:
        for (key, uri), data in zip(files.items(), encoded, strict=True):
            if key not in standing:
                storage.write_bytes(uri, encode_png(decode_image(data)))
    return PictureSet(fingerprint(protocol), files, protocol)


def found_pictures(uri: str, shots: Sequence[Shot]) -> PictureSet:
    """Pictures from elsewhere, by name in the order of the shots. Raises ConfigError for another number of them."""
    files = picture_files(uri)
    if len(files) != len(shots):
        raise ConfigError(f"pictures={uri!r}: there are {len(files)} pictures, the suite asks for {len(shots)}")
    protocol = {"pictures": storage.fingerprint(uri)}
    return PictureSet(fingerprint(protocol), dict(zip((s.key for s in shots), files, strict=True)), protocol)


def reference_pictures(uri: str) -> PictureSet:
    """Real ones of any number and size. Raises ConfigError where there are none."""
    files = picture_files(uri)
    if not files:
        raise ConfigError(f"reference.source={uri!r}: there are no pictures")
    protocol = {"reference": storage.fingerprint(uri)}
    return PictureSet(fingerprint(protocol), {f"{i:06}": file for i, file in enumerate(files)}, protocol)


def picture_files(uri: str) -> list[str]:
    return [f for f in storage.list_files(uri) if PurePosixPath(f).suffix.lower() in (".png", ".jpg", ".jpeg", ".webp")]


def load_picture(uri: str) -> Tensor:
    """uint8 (3, H, W). Raises BadImage."""
    pixels = to_array(decode_image(storage.read_bytes(uri)))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)
