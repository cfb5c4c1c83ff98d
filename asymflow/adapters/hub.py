"""Where an adapter lies: a folder, or a repository whose files are fetched."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from asymflow.hub import is_repository, repository_of

FILES = ["*.json", "*.safetensors", "*.pth"]
OPTIONS = ("cache_dir", "force_download", "local_files_only", "token")


def local_folder(adapter: str | Path, revision: str | None = None, options: Mapping[str, Any] | None = None) -> Path:
    """The folder itself, or that of the repository OWNER/NAME (or OWNER/NAME@REVISION) after its files were fetched.

    Of `options` the OPTIONS of huggingface_hub are used. Raises ValueError for a path where nothing is.
    """
    if Path(adapter).is_dir():
        return Path(adapter)
    if not is_repository(adapter):
        raise ValueError(f"there is no adapter folder at {adapter}")
    known = {name: value for name, value in (options or {}).items() if name in OPTIONS}
    repository, revision = repository_of(str(adapter), revision or "main")
    return Path(snapshot_download(repository, revision=revision, allow_patterns=FILES, **known))
