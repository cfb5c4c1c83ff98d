"""Hub backend of `storage`, read only: hf://datasets/OWNER/NAME@REVISION/PATH, on huggingface_hub.

Files are read in ranges and never stored on disk. The address comes from HF_ENDPOINT and the token from HF_TOKEN.
"""

import errno
import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from pipelines.core.credentials import hide_secrets
from pipelines.core.errors import StorageError
from pipelines.core.range_file import RangeFile

CHUNK = 32 << 20
"""Bytes per request: large, because the hub limits the number of requests per five minutes"""
RETRIES: dict[str, Any] = {"max_retries": 8, "base_wait_time": 1.0, "max_wait_time": 30.0}
"""Arguments of `huggingface_hub.utils.http_backoff`, which also waits as long as a 429 answer demands"""
SECONDS = 60
"""Timeout of a request"""
_URI = re.compile(r"hf://datasets/(?P<repository>[^/@]+/[^/@]+)(@(?P<revision>[^/@]+))?(/(?P<path>.+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def is_on_hub(uri: str) -> bool:
    """Return whether a URI names data on the hub."""
    return uri.startswith("hf://")


def split_uri(uri: str) -> tuple[str, str, str]:
    """Split a URI into (OWNER/NAME, revision, path in the repository). Raises ValueError for another form."""
    found = _URI.fullmatch(uri.rstrip("/"))
    if not found:
        raise ValueError("must be hf://datasets/OWNER/NAME or hf://datasets/OWNER/NAME@REVISION, or a path below it")
    return found["repository"], found["revision"] or "main", found["path"] or ""


def pin(uri: str) -> str:
    """Return the URI with the commit that its revision names now.

    Raises:
        FileNotFoundError: The data set or its revision does not exist, or the token has no access to it.
        StorageError: The hub does not answer.
    """
    from huggingface_hub import HfApi  # not needed to read settings

    repository, revision, path = split_uri(uri)
    if not _COMMIT.fullmatch(revision):
        with _errors(uri):
            revision = str(HfApi().dataset_info(repository, revision=revision, timeout=SECONDS).sha)
    return "/".join(filter(None, [f"hf://datasets/{repository}@{revision}", path]))


def page_of(uri: str) -> str:
    """Return the address of the web page that shows a file or folder."""
    from huggingface_hub import constants

    repository, revision, path = split_uri(uri)
    return "/".join(filter(None, [constants.ENDPOINT, "datasets", repository, "tree", revision, path]))


def exists(uri: str) -> bool:
    """Return whether a file or folder exists."""
    uri = pin(uri)
    return split_uri(uri)[2] == "" or _entry(uri) is not None


def list_paths(uri: str) -> list[str]:
    """Return the paths of all files below a folder; empty without a folder."""
    return [path for path in _files(uri) if path]


def checksums(uri: str) -> dict[str, str]:
    """Return {path below the folder: SHA-256 or git hash, and size} of all files, without reading data.

    The path is empty for a file at the URI itself.

    Raises:
        FileNotFoundError: There is no such file and no such folder.
    """
    found = _files(uri)
    if not found:
        raise FileNotFoundError(errno.ENOENT, "no such file or folder", uri)
    return {path: f"{file.lfs.sha256 if file.lfs else file.blob_id} {file.size}" for path, file in found.items()}


class HubFile(RangeFile):
    """Seekable file over a file on the hub; each range is requested with retries.

    If the whole file is read in order, its SHA-256 is compared with the hub's at the last byte.
    """

    def __init__(self, uri: str):
        from huggingface_hub import hf_hub_url

        pinned = pin(uri)
        entry = _entry(pinned)
        if not _is_file(entry):
            raise FileNotFoundError(errno.ENOENT, "no such file", uri)
        super().__init__(uri, entry.size, CHUNK)
        repository, commit, path = split_uri(pinned)
        self.url = hf_hub_url(repository, path, repo_type="dataset", revision=commit)
        self._expected = entry.lfs.sha256 if entry.lfs else ""
        self._digest, self._hashed = hashlib.sha256(), 0

    def read_range(self, start: int, size: int) -> bytes:
        """Return the bytes of a range; see `RangeFile.read_range`."""
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff

        headers = {"Range": f"bytes={start}-{start + size - 1}", "Accept-Encoding": "identity", **build_hf_headers()}
        with _errors(self.uri):
            answer = http_backoff("GET", self.url, headers=headers, timeout=SECONDS, **RETRIES)
            hf_raise_for_status(answer)
        if len(answer.content) != size:
            raise StorageError(f"{self.uri}: requested {size} bytes from {start}, received {len(answer.content)}")
        self._check(start, answer.content)
        return answer.content

    def _check(self, start: int, data: bytes) -> None:
        """Hash the bytes that follow the hashed ones, also where a reader went back; a gap ends the check."""
        new = data[self._hashed - start :] if self._expected and start <= self._hashed else b""
        self._digest.update(new)
        self._hashed += len(new)
        if new and self._hashed == self.size and self._digest.hexdigest() != self._expected:
            raise StorageError(
                f"{self.uri}: the received bytes have SHA-256 {self._digest.hexdigest()}, the hub states "
                f"{self._expected}; run again to read the file again"
            )


def _entry(uri: str) -> Any:
    """Return the entry (RepoFile or RepoFolder) at a pinned URI, or None."""
    path = split_uri(uri)[2]
    return _list(uri, path.rpartition("/")[0], recursive=False).get(path)


def _files(uri: str) -> dict[str, Any]:
    """Return {path below the URI: RepoFile}; the path is empty for a file at the URI itself."""
    uri = pin(uri)
    path = split_uri(uri)[2]
    entry = _entry(uri)
    found = {path: entry} if _is_file(entry) else _list(uri, path, recursive=True)
    below = len(path) + 1 if path else 0
    return {name[below:]: file for name, file in found.items() if _is_file(file)}


def _is_file(entry: Any) -> bool:
    from huggingface_hub import RepoFile

    return isinstance(entry, RepoFile)


def _list(uri: str, folder: str, recursive: bool) -> dict[str, Any]:
    """Return {path in the repository: entry} of a folder; empty if there is no such folder."""
    repository, commit, _ = split_uri(uri)
    with _errors(uri):
        return _list_commit(repository, commit, folder, recursive)


@lru_cache(maxsize=64)
def _list_commit(repository: str, commit: str, folder: str, recursive: bool) -> dict[str, Any]:
    """Request a listing; it is cached because that of a commit never changes."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import EntryNotFoundError

    try:
        entries = HfApi().list_repo_tree(
            repository, folder or None, recursive=recursive, revision=commit, repo_type="dataset"
        )
        return {entry.path: entry for entry in entries}
    except EntryNotFoundError:
        return {}


@contextmanager
def _errors(uri: str) -> Iterator[None]:
    """Raise StorageError with the URI for errors of the hub and the network, without signed addresses.

    A data set that does not exist, or that the token has no access to, raises FileNotFoundError: the hub answers alike.
    """
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        yield
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        reason = (
            f"no such data set or revision, or no access to it ({type(error).__name__}); check the name, accept the "
            "data set's conditions if it has any, and set HF_TOKEN"
        )
        raise FileNotFoundError(errno.ENOENT, reason, uri) from None
    except Exception as error:  # httpx's errors have no base class in common with the hub's
        reason = hide_secrets(" ".join(str(error).split()))
        raise StorageError(f"{uri}: {type(error).__name__}: {reason}") from None
