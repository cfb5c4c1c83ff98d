"""Models of metrics: from a local file or folder, or from a repository that the user names.

Nothing is downloaded by default: without a source there is an error that says what is needed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from huggingface_hub import hf_hub_download, snapshot_download

from asymflow.content import content_of
from asymflow.hub import is_repository, repository_of, resolve_commit

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")


class MissingWeights(ValueError):
    """A metric's model is missing; the message says what is needed and how to get it."""


@dataclass(frozen=True)
class Found:
    """Model on this machine."""

    path: Path
    """Its file or folder"""
    identity: str
    """Repository and commit, or a hash of local content: equal models have equal identities on any machine"""


def find(source: str, needed: str, file: str = "", revision: str = "main", patterns: Sequence[str] = _FILES) -> Found:
    """Return the folder of a model, or one file of it, after downloading it if necessary.

    Args:
        source: A path, or a repository OWNER/NAME or OWNER/NAME@REVISION. A path of a file is that file.
        needed: Description of the model and its origin, for errors.
        file: File in the folder or repository; empty: the whole folder.
        revision: Revision of a repository of the first form.
        patterns: Files of a repository to download; by default no pickles.

    Returns:
        The model.

    Raises:
        MissingWeights: If it is missing or cannot be downloaded.
    """
    local = _local(source, needed, file)
    if local:
        return local
    source, revision = repository_of(source, revision)
    try:
        if file:
            path = Path(hf_hub_download(source, file, revision=revision))
        else:
            path = Path(snapshot_download(source, revision=revision, allow_patterns=list(patterns)))
    except Exception as error:  # of the hub, the network or the disk
        raise MissingWeights(f"{source} ({revision}) cannot be fetched, {type(error).__name__}: {error}") from error
    commit = path.parents[len(PurePosixPath(file).parts) - 1].name if file else path.name
    return Found(path, f"{source}@{commit}" + (f"/{file}" if file else ""))


def find_tokenizer(source: str, needed: str, revision: str, patterns: Sequence[str]) -> Found:
    """Return a tokenizer. Without its tokenizer.json transformers silently creates one with an empty vocabulary.

    Args:
        source: As for `find`.
        needed: As for `find`.
        revision: As for `find`.
        patterns: As for `find`.

    Returns:
        The folder of the tokenizer.

    Raises:
        MissingWeights: If it or its tokenizer.json is missing, or it cannot be downloaded.
    """
    found = find(source, needed, revision=revision, patterns=patterns)
    if not (found.path / "tokenizer.json").is_file():
        raise MissingWeights(f"{found.path} has no tokenizer.json: needed is {needed}")
    return found


def identify(source: str, needed: str, file: str = "", revision: str = "main") -> str:
    """Return the identity that `find` would return, without downloading; the hub is only queried for the commit.

    Args:
        source: As for `find`.
        needed: As for `find`.
        file: As for `find`.
        revision: As for `find`.

    Returns:
        The identity.

    Raises:
        MissingWeights: If the model is missing, or its commit cannot be resolved.
    """
    local = _local(source, needed, file)
    if local:
        return local.identity
    try:
        commit = resolve_commit(source, revision)
    except ValueError as error:
        raise MissingWeights(str(error)) from None
    return f"{repository_of(source)[0]}@{commit}" + (f"/{file}" if file else "")


def fit_weights(kind: Any, config: Any, weights: "dict[str, Tensor]", dtype: "torch.dtype", source: str) -> Any:
    """Return a transformers model with exactly these weights.

    Args:
        kind: Class of the model.
        config: Its configuration.
        weights: Its weights by name.
        dtype: Type of the model.
        source: Name of the weights, for errors.

    Returns:
        The model.

    Raises:
        ValueError: If weights are missing, unknown, or of another shape; it gives their names.
    """
    model, loaded = kind.from_pretrained(
        None,
        config=config,
        state_dict=weights,
        dtype=dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are refused below, by name
    )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if loaded[problem]:
            names = ", ".join(sorted(str(name) for name in loaded[problem])[:5])
            raise ValueError(f"{source} does not fit: {len(loaded[problem])} {problem}, {names} among them")
    return model


def _local(source: str, needed: str, file: str) -> Found | None:
    """Return the model at a local path; None if the source can only be a repository."""
    if not source:
        raise MissingWeights(f"no model was named: needed is {needed}")
    path = Path(source)
    if not path.exists() and not is_repository(source):
        raise MissingWeights(f"{source} does not exist: needed is {needed}")
    if not path.exists():
        return None
    path = path / file if file and path.is_dir() else path
    if not path.exists() or path.is_dir() == bool(file):
        raise MissingWeights(f"{source} has no {file or 'folder'}: needed is {needed}")
    return Found(path, f"local:{content_of(path)}")
