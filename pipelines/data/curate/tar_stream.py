"""Stream the members of a tar, and report everything that is damaged.

`tarfile` stops at the first end mark and at the first damaged header, and trusts the sizes that headers state. This
reader continues after both (tars joined by `cat`, damage in the middle), and never holds or skips more bytes than the
file has.
"""

import gzip
import io
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

UNSAFE = "unsafe path in tar"
LINK = "link or special file in tar"
TOO_LARGE = "file too large"
CUT_OFF = "tar cut off"
FALSE_SIZE = "false size in tar"
DAMAGED = "damaged header in tar"
NO_TAR = "no readable shard"
_BLOCK = 512
_CHUNK = 1 << 17
_LARGEST_EXTENSION = 1 << 16  # maximum bytes of an extension header, for long names for example
_MAGIC = b"ustar"
_MAGIC_OFFSET = 257
_CHECKSUM = re.compile(rb" *[0-7]+[ \0]")  # a quick check before the header is parsed
_GZIP = b"\x1f\x8b"


@dataclass
class Member:
    """A file in a tar, or a problem of the named member, or of an unknown member if the name is empty."""

    name: str
    data: bytes = b""
    problem: str = ""


def read_members(file: io.BufferedReader, most_bytes: Callable[[str], int | None]) -> Iterator[Member]:
    """Yield the members of a tar, plain or compressed with gzip, in their order.

    Args:
        file: The open tar.
        most_bytes: Returns the size limit of a member, given its name; a larger member has the problem TOO_LARGE. None
            skips the member's data.

    Raises:
        OSError: The store failed. (Damage of the tar becomes a member with a problem.)
    """
    stream = _Stream(file)
    has_ended = found_any = False
    extensions: dict[str, bytes] = {}
    while block := stream.read(_BLOCK):
        if not block.strip(b"\0"):
            has_ended = True
            continue
        header = _parse(block)
        try:
            if header is None:
                raise ValueError
            if header.type in _EXTENSIONS:
                extensions |= _read_extension(header, stream)
                has_ended, found_any = False, True
                continue
            name, size = _apply(header, extensions)
        except ValueError:
            extensions = {}
            stream.push_back(block[1:])
            another = stream.find_header()
            if len(block) < _BLOCK and found_any:
                yield Member("", problem=CUT_OFF)
            else:
                yield Member("", problem=DAMAGED if another or found_any else NO_TAR)
            has_ended = not another  # the problem covers everything up to the end
            continue
        extensions, has_ended, found_any = {}, False, True
        if not header.isreg() or header.type == tarfile.GNUTYPE_SPARSE:
            if header.isreg() or header.type not in tarfile.SUPPORTED_TYPES:  # the other types have no data
                stream.skip(_padded(size))
            if not header.isdir() and header.type not in _NO_FILES:
                yield Member(name, problem=LINK)
        else:
            member = _read_file(stream, name, size, most_bytes(name))
            has_ended = member.problem == CUT_OFF
            yield member
    if not has_ended:
        yield Member("", problem=CUT_OFF)


_EXTENSIONS = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME,
               tarfile.GNUTYPE_LONGLINK)  # fmt: skip
_NO_FILES = (b"V", b"D")  # GNU's volume label and directory list


def _read_file(stream: "_Stream", name: str, size: int, limit: int | None) -> Member:
    """Read one file's data. If there is less than its header states, search for the next header."""
    if size <= stream.most_left():
        start = stream.position
        if limit is not None and size <= limit:
            padded = stream.read(_padded(size))
            if len(padded) >= size:
                if (inside := _first_header(padded)) is not None:
                    stream.push_back(padded[inside:])  # a tar that was cut off in this file, joined with another
                    return Member(name, problem=FALSE_SIZE)
                return Member(name, padded[:size], _path_problem(name))
        elif stream.skip(size) == size:
            stream.skip(_padded(size) - size)
            return Member(name, problem=_path_problem(name) or (TOO_LARGE if limit is not None else ""))
        stream.rewind(start)
    return Member(name, problem=FALSE_SIZE if stream.find_header() else CUT_OFF)


def _first_header(data: bytes) -> int | None:
    """Return the offset of the first header in some bytes, or None."""
    found = data.find(_MAGIC, _MAGIC_OFFSET)
    while found >= 0 and (start := found - _MAGIC_OFFSET) + _BLOCK <= len(data):
        if _CHECKSUM.match(data, start + 148) and _parse(data[start : start + _BLOCK]):
            return start
        found = data.find(_MAGIC, found + 1)
    return None


def _path_problem(name: str) -> str:
    return UNSAFE if name.startswith("/") or ".." in name.split("/") else ""


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _parse(block: bytes) -> tarfile.TarInfo | None:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return None


def _read_extension(header: tarfile.TarInfo, stream: "_Stream") -> dict[str, bytes]:
    """Read an extension header, which describes the next header. Raises ValueError if it is damaged."""
    if not 0 <= header.size <= _LARGEST_EXTENSION:
        raise ValueError
    padded = stream.read(_padded(header.size))
    data = padded[: header.size]
    try:
        return _parse_extension(header, data)
    except ValueError:
        stream.push_back(padded)
        raise


def _parse_extension(header: tarfile.TarInfo, data: bytes) -> dict[str, bytes]:
    if len(data) < header.size:
        raise ValueError
    if header.type == tarfile.GNUTYPE_LONGNAME:
        return {"path": data.rstrip(b"\0")}
    if header.type in (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK):
        return {}
    found: dict[str, bytes] = {}
    while data.strip(b"\0"):
        length = data.partition(b" ")[0]
        record, data = data[: int(length)], data[int(length) :]
        name, equals, value = record[len(length) + 1 : -1].partition(b"=")
        if not equals or int(length) <= len(length) + 1:
            raise ValueError
        found[name.decode("utf-8", "replace")] = value
    return found


def _apply(header: tarfile.TarInfo, extensions: dict[str, bytes]) -> tuple[str, int]:
    """Return a member's (name, size) after its extension headers. Raises ValueError for an invalid size."""
    name = extensions["path"].decode("utf-8", "surrogateescape") if "path" in extensions else header.name
    size = int(extensions.get("size", header.size))
    if any(key.startswith("GNU.sparse.") for key in extensions):
        header.type = tarfile.GNUTYPE_SPARSE
    if size < 0:
        raise ValueError
    return name, size


class _Stream:
    """The bytes of a file, decompressed if it is gzip, read forward; damaged compression counts as the end."""

    def __init__(self, file: io.BufferedReader):
        self.end = file.seek(0, io.SEEK_END)
        file.seek(0)
        self.zipped = gzip.GzipFile(fileobj=file) if file.peek(2)[:2] == _GZIP else None
        self.file = file
        self.position = 0
        self._held, self._at = b"", 0  # buffer, and the number of its bytes that were read
        self._knows_end = self.zipped is None

    def most_left(self) -> float:
        """Return an upper bound of the remaining bytes."""
        return self.end - self.position if self._knows_end else float("inf")

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes, fewer only at the end."""
        parts = []
        while size > 0 and (self._at < len(self._held) or self._fetch()):
            parts.append(self._held[self._at : self._at + size])
            self._at += len(parts[-1])
            self.position += len(parts[-1])
            size -= len(parts[-1])
        return b"".join(parts)

    def skip(self, size: int) -> int:
        """Skip up to `size` bytes; return the number skipped."""
        skipped = 0
        while skipped < size and (part := self.read(min(size - skipped, _CHUNK))):
            skipped += len(part)
        return skipped

    def push_back(self, data: bytes) -> None:
        """Return the bytes that were read last to the stream."""
        if self._at >= len(data):
            self._at -= len(data)
        else:
            self._held, self._at = data + self._held[self._at :], 0
        self.position -= len(data)

    def rewind(self, position: int) -> None:
        """Go back to a position. This decompresses from the beginning, at most once, since the end is known then."""
        (self.zipped or self.file).seek(position)
        self._held, self._at, self.position = b"", 0, position

    def find_header(self) -> bool:
        """Skip to the next header, at any offset, or to the end; return whether a header was found."""
        window = b""
        while part := self.read(_CHUNK):
            window += part
            if (start := _first_header(window)) is not None:
                self.push_back(window[start:])
                return True
            window = window[max(0, len(window) - _BLOCK) :]
        return False

    def _fetch(self) -> bool:
        try:
            self._held = self.zipped.read1(_CHUNK) if self.zipped else self.file.read(_CHUNK)
        except (EOFError, zlib.error, gzip.BadGzipFile):
            self._held = b""
        self._at = 0
        if not self._held:
            self.end, self._knows_end = self.position, True
        return bool(self._held)
