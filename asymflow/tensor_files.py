"""Reproducible safetensors files: equal content gives equal bytes."""

import json
from pathlib import Path


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
