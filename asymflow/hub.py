"""Name repositories of the hub, and resolve what moves (a branch, a tag) to the commit that it means now."""

import logging
import re
from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.file_download import repo_folder_name

LOGGER = logging.getLogger(__name__)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SECONDS = 10
"""How long the hub may take to answer"""


def is_repository(source: str | Path) -> bool:
    """Whether it can only name a repository: OWNER/NAME or OWNER/NAME@REVISION, where no folder OWNER is."""
    parts = str(source).partition("@")[0].split("/")
    return len(parts) == 2 and all(parts) and parts[0][0] not in ".~" and not Path(parts[0]).is_dir()


def repository_of(source: str, revision: str = "main") -> tuple[str, str]:
    """Return (OWNER/NAME, its revision) of OWNER/NAME or OWNER/NAME@REVISION."""
    name, separator, named = source.partition("@")
    return name, named if separator else revision


def resolve_commit(source: str, revision: str = "main") -> str:
    """Return the commit that OWNER/NAME or OWNER/NAME@REVISION means now.

    Where the hub does not answer, it is the one that this machine's cache has for the revision, with a warning.

    Raises:
        ValueError: neither the hub nor the cache knows it.
    """
    name, revision = repository_of(source, revision)
    if _COMMIT.fullmatch(revision):
        return revision
    try:
        return str(HfApi().model_info(name, revision=revision, timeout=_SECONDS).sha)
    except Exception as error:  # of the hub or the network
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
    cached = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type="model"), "refs", revision)
    if not cached.is_file():
        raise ValueError(f"{name} ({revision}) cannot be asked for, {reason}; {name}@COMMIT needs no answer")
    commit = cached.read_text("utf-8").strip()
    LOGGER.warning("%s (%s): no answer from the hub (%s); taking %s, cached here", name, revision, reason, commit)
    return commit
