"""safetensors files of which the same content is the same bytes."""

import json
from pathlib import Path


def sort_metadata(path: Path) -> None:
    """Put a file's metadata in order, in place: the library writes them in any."""
    with open(path, "r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        file.seek(8)
        file.write(text.ljust(size))
