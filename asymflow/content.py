"""Content hashes of files and folders: equal content has an equal hash, at any path.

Digests are cached per user; the cache can be deleted at any time. A file is read again if its size, its time of
modification, or its time of change (which cannot be set back) differs from the cached one.
"""

import hashlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm  # noqa: TID251  # the library cannot use the pipeline's progress lines

T = TypeVar("T")
_CHUNK = 1 << 20
_CACHED_FROM = 1 << 16
"""Bytes: smaller files are read as fast as the cache"""
_MAX_CACHED = 1_000_000
_SETTLED_NS = 2_000_000_000
"""A file that changed more recently may change again within the same tick of its file system's clock"""
_QUERY = "SELECT size, inode, modified, changed, sha256 FROM files WHERE path = ?"
_WAIT_SECONDS = 10
_SHOWN_AFTER = 5

Stamp = tuple[int, int, int, int]
"""Size, inode, modification and change time of a file, the times in nanoseconds"""


def content_of(path: str | Path, suffix: str = "") -> str:
    """Return a hash of the names and contents of a file, or of all files below a folder.

    Hidden and unfinished files (`.name`, `name.partial`) are ignored; links are followed.

    Args:
        path: File or folder.
        suffix: Only files whose names end with it count.

    Returns:
        16 hexadecimal digits.
    """
    root = Path(path)
    files = {str(file.relative_to(root)): file for file in _files_below(root, suffix)} if root.is_dir() else {"": root}
    digest = hashlib.sha256()
    for name, sha256 in sorted(hash_files(files).items()):
        digest.update(f"{name}\0{sha256}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def sha256_of(path: str | Path) -> str:
    """Return the SHA-256 of a file.

    Args:
        path: The file.

    Returns:
        64 hexadecimal digits.
    """
    return hash_files({"": Path(path)})[""]


def hash_files(files: Mapping[str, Path]) -> dict[str, str]:
    """Return the SHA-256 of files; unchanged files are read only once.

    Args:
        files: Files by name.

    Returns:
        64 hexadecimal digits by name.
    """
    stamps = {name: _stamp(file) for name, file in files.items()}
    keys = {name: os.path.abspath(files[name]) for name, stamp in stamps.items() if stamp[0] >= _CACHED_FROM}
    known: dict[str, str] = {}
    if keys:
        known = _use_cache(lambda cache: _look_up(cache, keys, stamps), known)
    unknown = [name for name in files if name not in known]
    total = sum(stamps[name][0] for name in unknown)
    with (
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
        tqdm(
            total=total, desc="hash files", unit="B", unit_scale=True, delay=_SHOWN_AFTER, leave=False, disable=None
        ) as bar,  # disable=None: on a terminal only
    ):
        read = dict(zip(unknown, pool.map(lambda name: _read(files[name], bar), unknown), strict=True))
    now = time.time_ns()
    settled = [
        (keys[name], *stamps[name], read[name])
        for name in unknown
        if name in keys and _stamp(files[name]) == stamps[name] and now - max(stamps[name][2:]) > _SETTLED_NS
    ]
    if settled:
        _use_cache(lambda cache: _keep(cache, settled), None)
    return known | read


def cache_file() -> Path:
    """Return the path of the cache.

    Returns:
        content.sqlite in ASYMFLOW_CACHE, by default in ~/.cache/asymflow (XDG_CACHE_HOME).
    """
    caches = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    return Path(os.environ.get("ASYMFLOW_CACHE") or caches / "asymflow") / "content.sqlite"


def _files_below(folder: Path, suffix: str, above: frozenset[str] = frozenset()) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in above:  # a link to one of its parents
        return
    with os.scandir(folder) as entries:
        shown = [entry for entry in entries if not entry.name.startswith(".")]
    for entry in shown:
        if entry.is_dir():
            yield from _files_below(Path(entry.path), suffix, above | {real})
        elif entry.is_file() and entry.name.endswith(suffix) and not entry.name.endswith(".partial"):
            yield Path(entry.path)


def _stamp(file: Path) -> Stamp:
    found = file.stat()
    return found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns


def _read(file: Path, bar: "tqdm") -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


def _use_cache(use: Callable[[sqlite3.Connection], T], without: T) -> T:
    """Return the result of `use`, or `without` if the cache is damaged, locked for long, or not writable."""
    try:
        file = cache_file()
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with closing(sqlite3.connect(file, timeout=_WAIT_SECONDS)) as cache, cache:
            cache.execute(
                "CREATE TABLE IF NOT EXISTS files"
                " (path TEXT PRIMARY KEY, size INT, inode INT, modified INT, changed INT, sha256 TEXT)"
            )
            return use(cache)
    except (sqlite3.Error, OSError, UnicodeError):
        return without


def _look_up(cache: sqlite3.Connection, keys: Mapping[str, str], stamps: Mapping[str, Stamp]) -> dict[str, str]:
    found = {}
    for name, path in keys.items():
        row = cache.execute(_QUERY, (path,)).fetchone()
        if row and row[:-1] == stamps[name]:
            found[name] = row[-1]
    return found


def _keep(cache: sqlite3.Connection, rows: Iterable[tuple]) -> None:
    cache.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?)", rows)
    cache.execute("DELETE FROM files WHERE rowid <= (SELECT max(rowid) FROM files) - ?", (_MAX_CACHED,))
