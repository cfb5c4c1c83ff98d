"""Location of an adapter: a folder, or a repository whose files are downloaded."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from asymflow.hub import is_repository, repository_of

FILES = ["*.json", "*.safetensors", "*.pth"]
OPTIONS = ("cache_dir", "force_download", "local_files_only", "token")


def local_folder(adapter: str | Path, revision: str | None = None, options: Mapping[str, Any] | None = None) -> Path:
    """Return the folder of an adapter, after downloading it if necessary.

    Args:
        adapter: A folder, or a repository OWNER/NAME or OWNER/NAME@REVISION.
        revision: Revision of the repository; None: `main`.
        options: Options of huggingface_hub; those named in OPTIONS are used.

    Returns:
        The local folder.

    Raises:
        ValueError: If it is neither a folder nor the name of a repository.
    """
    if Path(adapter).is_dir():
        return Path(adapter)
    if not is_repository(adapter):
        raise ValueError(f"there is no adapter folder at {adapter}")
    known = {name: value for name, value in (options or {}).items() if name in OPTIONS}
    repository, revision = repository_of(str(adapter), revision or "main")
    return Path(snapshot_download(repository, revision=revision, allow_patterns=FILES, **known))
