"""The members of a tar as a stream, with everything that is wrong with it.

`tarfile` takes the first end mark and the first damaged header for the end, and trusts the sizes that headers state.
Here reading goes on behind both (tars joined by `cat`, damage in the middle), and what is held or skipped is bounded by
the bytes that are really there.
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
_LARGEST_EXTENSION = 1 << 16  # of the headers for long names and the like
_MAGIC = b"ustar"
_MAGIC_PLACE = 257
_CHECKSUM = re.compile(rb" *[0-7]+[ \0]")  # is looked at before the whole header is
_GZIP = b"\x1f\x8b"


@dataclass
class Member:
    """A file in a tar, or a problem: of the named member, or of an unknown one where the name is empty."""

    name: str
    data: bytes = b""
    problem: str = ""


def read_members(file: io.BufferedReader, most_bytes: Callable[[str], int | None]) -> Iterator[Member]:
    """Yield the members of a tar, plain or compressed with gzip, in their order.

    Args:
        file: The open tar.
        most_bytes: Called with each member's name: a larger one has the problem TOO_LARGE; None: do not read its data.

    Raises:
        OSError: The store failed; damage of the tar becomes a member with a problem instead.
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
            has_ended = not another  # the problem stands for all up to the end
            continue
        extensions, has_ended, found_any = {}, False, True
        if not header.isreg() or header.type == tarfile.GNUTYPE_SPARSE:
            if header.isreg() or header.type not in tarfile.SUPPORTED_TYPES:  # of the others no data follow
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
_NO_FILES = (b"V", b"D")  # GNU's name of the volume and list of a folder


def _read_file(stream: "_Stream", name: str, size: int, limit: int | None) -> Member:
    """Read one file's data, which may be less than its header states: then look for a header in it."""
    if size <= stream.most_left():
        start = stream.position
        if limit is not None and size <= limit:
            padded = stream.read(_padded(size))
            if len(padded) >= size:
                if (inside := _first_header(padded)) is not None:
                    stream.push_back(padded[inside:])  # another tar was joined to one that was cut off in this file
                    return Member(name, problem=FALSE_SIZE)
                return Member(name, padded[:size], _path_problem(name))
        elif stream.skip(size) == size:
            stream.skip(_padded(size) - size)
            return Member(name, problem=_path_problem(name) or (TOO_LARGE if limit is not None else ""))
        stream.rewind(start)
    return Member(name, problem=FALSE_SIZE if stream.find_header() else CUT_OFF)


def _first_header(data: bytes) -> int | None:
    """Return where the first header in some bytes begins."""
    place = data.find(_MAGIC, _MAGIC_PLACE)
    while place >= 0 and (start := place - _MAGIC_PLACE) + _BLOCK <= len(data):
        if _CHECKSUM.match(data, start + 148) and _parse(data[start : start + _BLOCK]):
            return start
        place = data.find(_MAGIC, place + 1)
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
    """Return what a header in front of another one states about that. Raises ValueError where it is damaged."""
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
    """Return a member's (name, size). Raises ValueError for a size that is none."""
    name = extensions["path"].decode("utf-8", "surrogateescape") if "path" in extensions else header.name
    size = int(extensions.get("size", header.size))
    if any(key.startswith("GNU.sparse.") for key in extensions):
        header.type = tarfile.GNUTYPE_SPARSE
    if size < 0:
        raise ValueError
    return name, size


class _Stream:
    """The bytes of a file, decompressed where it is compressed, read forward; damage of the compression is its end."""

    def __init__(self, file: io.BufferedReader):
        self.end = file.seek(0, io.SEEK_END)
        file.seek(0)
        self.zipped = gzip.GzipFile(fileobj=file) if file.peek(2)[:2] == _GZIP else None
        self.file = file
        self.position = 0
        self._held, self._at = b"", 0  # bytes fetched, and how many of them were read
        self._knows_end = self.zipped is None

    def most_left(self) -> float:
        """Return how many bytes there can be from here on."""
        return self.end - self.position if self._knows_end else float("inf")

    def read(self, size: int) -> bytes:
        """Return the next bytes, fewer at the end alone."""
        parts = []
        while size > 0 and (self._at < len(self._held) or self._fetch()):
            parts.append(self._held[self._at : self._at + size])
            self._at += len(parts[-1])
            self.position += len(parts[-1])
            size -= len(parts[-1])
        return b"".join(parts)

    def skip(self, size: int) -> int:
        """Pass over bytes; return how many there were."""
        skipped = 0
        while skipped < size and (part := self.read(min(size - skipped, _CHUNK))):
            skipped += len(part)
        return skipped

    def push_back(self, data: bytes) -> None:
        """Make the bytes that were read last the next ones again."""
        if self._at >= len(data):
            self._at -= len(data)
        else:
            self._held, self._at = data + self._held[self._at :], 0
        self.position -= len(data)

    def rewind(self, position: int) -> None:
        """Go back. Decompresses from the beginning, once at most: the end is known then."""
        (self.zipped or self.file).seek(position)
        self._held, self._at, self.position = b"", 0, position

    def find_header(self) -> bool:
        """Go to the next header, wherever it begins; return whether there is one (else: to the end)."""
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
