"""The one place where metrics get their models from: a local file or folder, or a repository that was named.

Nothing is fetched that nobody asked for: without a source there is an error that says what is needed.
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
    """A metric's model is not where it was said to be; the message says what is needed, and how to get it."""


@dataclass(frozen=True)
class Found:
    """A model on this machine."""

    path: Path
    identity: str
    """Repository and commit, or the content of what lies locally: the same model is the same anywhere"""


def find(source: str, needed: str, file: str = "", revision: str = "main", patterns: Sequence[str] = _FILES) -> Found:
    """The folder of a model, or with `file` that one file.

    `source` is a path, or a repository OWNER/NAME or OWNER/NAME@REVISION, which is fetched into huggingface_hub's cache
    (only `patterns`, by default no pickles); `revision` is that of the first form. `needed` says in words what is
    looked for, and where it comes from. A `source` that is a file already is that file.

    Raises:
        MissingWeights: there is none.
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


def identify(source: str, needed: str, file: str = "", revision: str = "main") -> str:
    """What `find` would call it, but nothing is fetched: the hub is asked for the commit alone. Raises MissingWeights.
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
    """A model of transformers with exactly these weights. Raises ValueError for others, which are named."""
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
    """None for what can only be a repository."""
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
