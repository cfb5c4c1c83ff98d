"""Repositories of the Hugging Face hub: their names, and the commits of their branches and tags."""

import logging
import re
from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.file_download import repo_folder_name

LOGGER = logging.getLogger(__name__)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SECONDS = 10
"""Timeout of a request to the hub"""


def is_repository(source: str | Path) -> bool:
    """Return whether a source can only be a repository: OWNER/NAME or OWNER/NAME@REVISION without a folder OWNER.

    Args:
        source: Path or name.

    Returns:
        True if it is the name of a repository.
    """
    parts = str(source).partition("@")[0].split("/")
    return len(parts) == 2 and all(parts) and parts[0][0] not in ".~" and not Path(parts[0]).is_dir()


def repository_of(source: str, revision: str = "main") -> tuple[str, str]:
    """Split OWNER/NAME or OWNER/NAME@REVISION.

    Args:
        source: Name of a repository.
        revision: Revision of the first form.

    Returns:
        OWNER/NAME and the revision.
    """
    name, separator, named = source.partition("@")
    return name, named if separator else revision


def resolve_commit(source: str, revision: str = "main") -> str:
    """Return the current commit of OWNER/NAME or OWNER/NAME@REVISION.

    If the hub does not answer, it is the commit of the revision in the local cache, with a warning.

    Args:
        source: Name of a repository.
        revision: Revision of the first form.

    Returns:
        The commit, 40 hexadecimal digits.

    Raises:
        ValueError: If neither the hub nor the cache knows the revision.
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
        raise ValueError(f"{name} ({revision}) cannot be resolved ({reason}); give {name}@COMMIT")
    commit = cached.read_text("utf-8").strip()
    LOGGER.warning("%s (%s): no answer from the hub (%s); using the cached commit %s", name, revision, reason, commit)
    return commit
