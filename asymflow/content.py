"""What a file or folder holds, in a short name: two that hold the same have the same, wherever they lie."""

import hashlib
from pathlib import Path

_CHUNK = 1 << 20


def content_of(path: str | Path, suffix: str = "") -> str:
    """16 hexadecimal digits, of the names and sizes of files and of each one's first and last MiB: weights of tens of
    gigabytes are not read whole. Of a folder only the files whose names end with `suffix`."""
    digest, root = hashlib.sha256(), Path(path)
    for file in sorted(p for p in root.rglob(f"*{suffix}") if p.is_file()) if root.is_dir() else [root]:
        size = file.stat().st_size
        digest.update(f"{file.relative_to(root)} {size}\n".encode())
        with open(file, "rb") as stream:
            digest.update(stream.read(_CHUNK))
            stream.seek(max(0, size - _CHUNK))
            digest.update(stream.read(_CHUNK))
    return digest.hexdigest()[:16]
