"""Reproducible safetensors files: equal content gives equal bytes."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from .atomic import atomic_file


def write_tensors(path: str | os.PathLike, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file atomically, with its metadata in alphabetical order.

    Args:
        path: File to write. Its folder is created.
        tensors: Tensors by name, on any device.
        metadata: The file's metadata.
    """
    with atomic_file(path) as partial:
        on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(on_cpu, partial, dict(metadata))
        sort_metadata(partial)


def sort_metadata(path: Path) -> None:
    """Sort the metadata of a safetensors file in place; the library writes it in arbitrary order.

    Args:
        path: The file.
    """
    with open(path, "r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        file.seek(8)
        file.write(text.ljust(size))
