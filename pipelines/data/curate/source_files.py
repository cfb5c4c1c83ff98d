"""List and open the files of a source, also those inside zip files, which are never unpacked.

A file has an address, which is its URI or ZIP!/MEMBER, and a path in the source, in which a zip file is a folder. Zip
files come from outside: sizes that they state are not trusted, and members are read with a limit.
"""

import errno
import io
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from pipelines.core import storage
from pipelines.core.config import ConfigError
from pipelines.core.range_file import SeekableFile
from pipelines.data.curate.samples import LARGEST_FILE

IN_ZIP = "!/"
LARGEST_TABLE = 1 << 30
"""Maximum bytes of a table inside a zip"""
TOO_LARGE = "file too large"
DAMAGED_ZIP = "zip cannot be read"
DAMAGED_MEMBER = "damaged file in zip"
UNSAFE = "unsafe path in zip"
REPLACED = "replaced by a later file of its path in zip"
_ENCRYPTED = "encrypted file in zip"
_LINK = "link or special file in zip"
_COMPRESSION = "compression of zip is not read"
_OVERLAP = "overlapping files in zip"
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # Python bounds the output of no other decompressor
_LOCAL_HEADER = 30  # bytes, without the name
_DAMAGE = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, RuntimeError, ValueError, OSError,
    OverflowError, MemoryError,
)  # fmt: skip


class BadFile(ValueError):
    """Raised for a file that cannot be read; the message is the reason written to `rejected/`."""


@dataclass(frozen=True)
class SourceFile:
    """A file of a source, or the reason why it cannot be read."""

    path: str
    """Path in the source, which identifies it"""
    address: str
    problem: str = ""


def is_zip(name: str) -> bool:
    """Return whether a file is a zip, by its name."""
    return name.lower().endswith(".zip")


def is_hidden(path: str) -> bool:
    """Return whether a path inside a zip is hidden, like those that listings of folders leave out."""
    return any(part.startswith(".") for part in path.split("/"))


def path_in_source(source: str, address: str) -> str:
    """Return the path in the source of the file at an address."""
    return path_of(address)[len(storage.absolute(source)) :].lstrip("/")


def path_of(address: str) -> str:
    """Return an address for a message: the URI, in which a zip is a folder."""
    return "/".join(filter(None, split_address(address)))


def list_source_files(source: str) -> list[SourceFile]:
    """Return the files of a folder or of a zip, sorted by path, with the members of zips in place of the zips.

    Hidden files are left out.

    Raises:
        ConfigError: The source is a file, but not a zip, or has a path that an address cannot express.
    """
    root = storage.absolute(source)
    is_local_file = storage.is_local(source) and Path(root).is_file()
    if is_local_file and not is_zip(root):
        raise ConfigError(f"source={source!r}: is not a folder; set the folder that holds the images or shards")
    uris = [] if is_local_file else storage.list_files(source)
    if not uris and is_zip(root) and storage.exists(source):
        uris = [root]
    files = []
    for uri in uris:
        if split_address(uri)[1]:
            raise ConfigError(f"source={source!r}: {uri} is in a folder whose name ends with .zip!; rename it")
        path = uri[len(root) + 1 :]
        if is_zip(uri):
            files += [_in_folder(path, member) for member in _list_members(uri)]
        else:
            files.append(SourceFile(path, uri))
    return sorted(files, key=lambda file: file.path)


def _in_folder(folder: str, file: SourceFile) -> SourceFile:
    return SourceFile("/".join(filter(None, [folder, file.path])), file.address, file.problem)


def _list_members(uri: str) -> Iterator[SourceFile]:
    """Yield the files of a zip; a zip that cannot be read yields one file without a path."""
    try:
        with storage.open_file(uri) as stream, zipfile.ZipFile(stream) as archive:
            members = [info for info in archive.infolist() if not info.is_dir()]
            last = {info.filename: info for info in members}
            overlapping = _find_overlaps(archive.infolist())
    except _DAMAGE as error:
        _raise_if_of_store(error)
        yield SourceFile("", uri, DAMAGED_ZIP)
        return
    for info in members:
        path = _plain(info.filename)
        if is_hidden(path) and not _is_unsafe(path):
            continue
        problem = _OVERLAP if info.header_offset in overlapping else _explain_unread(info, path)
        if not problem and last[info.filename] is not info:
            problem = REPLACED
        yield SourceFile(path, f"{uri}{IN_ZIP}{info.filename}", problem)


def _plain(name: str) -> str:
    """Return a member's path with slashes, as valid UTF-8."""
    path = name.replace("\\", "/").encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "/".join(part for part in path.split("/") if part != ".")


def _is_unsafe(path: str) -> bool:
    return path.startswith("/") or ".." in path.split("/") or path[1:3] == ":/"


def _explain_unread(info: zipfile.ZipInfo, path: str) -> str:
    """Return the reason why a member is not read; empty if it is."""
    kind = stat.S_IFMT(info.external_attr >> 16)
    if _is_unsafe(path):
        return UNSAFE
    if info.flag_bits & 1:
        return _ENCRYPTED
    if kind and kind != stat.S_IFREG:
        return _LINK
    return "" if info.compress_type in _METHODS else _COMPRESSION


def _find_overlaps(infos: list[zipfile.ZipInfo]) -> set[int]:
    """Return the offsets of members whose data overlaps the next member, as in zip bombs."""
    ordered = sorted(infos, key=lambda info: info.header_offset)
    pairs = zip(ordered, ordered[1:], strict=False)
    return {
        offset
        for one, following in pairs
        if one.header_offset + _LOCAL_HEADER + one.compress_size > following.header_offset
        for offset in (one.header_offset, following.header_offset)
    }


class SourceReader:
    """Opens the files of a source by address; keeps the last zip open, since neighbors are read one after another."""

    def __init__(self) -> None:
        self._uri = ""
        self._stream: BinaryIO | None = None
        self._zip: zipfile.ZipFile | None = None

    def __enter__(self) -> "SourceReader":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._close()

    def _close(self) -> None:
        for part in (self._zip, self._stream):
            if part:
                part.close()
        self._uri, self._zip, self._stream = "", None, None

    def _archive(self, uri: str) -> zipfile.ZipFile:
        if self._uri != uri or self._zip is None:
            self._close()
            self._stream = storage.open_file(uri)
            self._zip = zipfile.ZipFile(self._stream)
            self._uri = uri
        return self._zip

    def open(self, address: str) -> io.BufferedReader:
        """Open a file, seekable. A damaged member of a zip ends where the damage begins.

        Args:
            address: Its address.

        Returns:
            The open file.

        Raises:
            BadFile: It is a member of a zip that cannot be opened.
            FileNotFoundError: It does not exist.
        """
        uri, member = split_address(address)
        if not member:
            return storage.open_file(uri)
        try:
            archive = self._archive(uri)
            return io.BufferedReader(_Member(archive.open(member), archive.getinfo(member).file_size), 1 << 17)
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, "no such file", address) from None
        except _DAMAGE as error:
            _raise_if_of_store(error)
            raise BadFile(DAMAGED_MEMBER) from None

    def read(self, address: str, limit: int = LARGEST_FILE) -> bytes:
        """Read a whole file.

        Args:
            address: Its address.
            limit: Maximum number of bytes.

        Returns:
            Its content.

        Raises:
            BadFile: It is larger, or a damaged member of a zip.
        """
        with self.open(address) as file:
            data = file.read(limit + 1)
            is_damaged = isinstance(file.raw, _Member) and file.raw.is_damaged
        if is_damaged:
            raise BadFile(DAMAGED_MEMBER)
        if len(data) > limit:
            raise BadFile(TOO_LARGE)
        return data

    def open_table(self, address: str) -> BinaryIO:
        """Open a table, which is read from several places at once; one inside a zip is held in memory.

        Args:
            address: Its address.

        Returns:
            The open file.

        Raises:
            BadFile: It is damaged, or too large to be read inside a zip.
        """
        if not split_address(address)[1]:
            return storage.open_file(address)
        return io.BytesIO(self.read(address, LARGEST_TABLE))


def split_address(address: str) -> tuple[str, str]:
    """Split an address into (URI, member of the zip, or an empty string)."""
    at = address.lower().find(f".zip{IN_ZIP}")
    return (address[: at + 4], address[at + 4 + len(IN_ZIP) :]) if at >= 0 else (address, "")


class _Member(SeekableFile):
    """A member of a zip as a seekable file, whose end is where its data is damaged."""

    def __init__(self, file: Any, size: int):
        super().__init__(file.name, size)
        self.file = file
        self.is_damaged = False

    def readinto(self, buffer: Any) -> int:
        try:
            if self.file.tell() != self.position:
                self.file.seek(self.position)
            data = self.file.read(len(buffer))
        except _DAMAGE as error:
            _raise_if_of_store(error)
            self.is_damaged = True
            return 0
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)

    def close(self) -> None:
        with suppress(*_DAMAGE):
            self.file.close()
        super().close()


def _raise_if_of_store(error: BaseException) -> None:
    """Raise the error of the store that caused an error, if one did.

    zipfile replaces an error of the store by BadZipFile. A damaged zip makes zipfile seek to impossible positions,
    which is EINVAL.
    """
    cause: BaseException | None = error
    while cause:
        if isinstance(cause, storage.StorageError | FileNotFoundError | PermissionError):
            raise cause from None
        if isinstance(cause, OSError) and cause.errno not in (None, errno.EINVAL):
            raise cause from None
        cause = cause.__context__
