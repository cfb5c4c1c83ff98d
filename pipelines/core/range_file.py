"""Seekable files, and those whose bytes a store returns in ranges."""

import io
from abc import abstractmethod
from typing import Any


class SeekableFile(io.RawIOBase):
    """File to read, whose position is set without reading.

    Args:
        uri: The file, for messages.
        size: Its size in bytes.
    """

    def __init__(self, uri: str, size: int):
        self.uri, self.size, self.position = uri, size, 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position in bytes."""
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position and return it; see `io.IOBase.seek`."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        if start + offset < 0:
            raise ValueError(f"{self.uri}: cannot seek to {start + offset}")
        self.position = start + offset
        return self.position


class RangeFile(SeekableFile):
    """Seekable file over a stored object, read in ranges.

    Args:
        uri: The object, for messages.
        size: Its size in bytes.
        chunk: Maximum number of bytes per request.
    """

    def __init__(self, uri: str, size: int, chunk: int):
        super().__init__(uri, size)
        self.chunk = chunk

    @abstractmethod
    def read_range(self, start: int, size: int) -> bytes:
        """Return exactly `size` bytes from `start`. Raises StorageError if the store does not return them."""

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer with the bytes of at most one request; return their number, 0 at the end."""
        size = max(0, min(len(buffer), self.chunk, self.size - self.position))
        if size:
            buffer[:size] = self.read_range(self.position, size)
        self.position += size
        return size

    def readall(self) -> bytes:
        """Read the rest in chunks; RawIOBase would request a few KiB at a time."""
        return b"".join(iter(lambda: self.read(self.chunk), b""))
