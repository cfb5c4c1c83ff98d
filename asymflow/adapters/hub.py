"""Where an adapter lies: a folder, or a repository whose files are fetched."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

FILES = ["*.json", "*.safetensors", "*.pth"]
OPTIONS = ("cache_dir", "force_download", "local_files_only", "token")


def is_repository(adapter: str | Path) -> bool:
    """Whether it can only be the name of one: OWNER/NAME, where no folder OWNER is."""
    parts = str(adapter).split("/")
    return len(parts) == 2 and all(parts) and parts[0][0] not in ".~" and not Path(parts[0]).is_dir()


def local_folder(adapter: str | Path, revision: str | None = None, options: Mapping[str, Any] | None = None) -> Path:
    """The folder itself, or that of the repository OWNER/NAME after its files were fetched.

    Of `options` the OPTIONS of huggingface_hub are used. Raises ValueError for a path where nothing is.
    """
    if Path(adapter).is_dir():
        return Path(adapter)
    if not is_repository(adapter):
        raise ValueError(f"there is no adapter folder at {adapter}")
    known = {name: value for name, value in (options or {}).items() if name in OPTIONS}
    return Path(snapshot_download(str(adapter), revision=revision, allow_patterns=FILES, **known))
