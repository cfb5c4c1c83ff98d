import io

import pytest

from pipelines.core.range_file import RangeFile

DATA = bytes(range(256)) * 5


class Stored(RangeFile):
    """A file over DATA that records its requests."""

    def __init__(self, chunk):
        super().__init__("s3://b/x", len(DATA), chunk)
        self.requests = []

    def read_range(self, start, size):
        self.requests.append((start, size))
        return DATA[start : start + size]


@pytest.mark.parametrize("chunk", [7, 256, 10_000])
def test_the_whole_file_is_read_once(chunk):
    file = Stored(chunk)
    assert file.read() == DATA
    assert sum(size for _, size in file.requests) == len(DATA)
    assert max(size for _, size in file.requests) <= chunk
    assert file.read() == b""


def test_setting_the_position_reads_nothing():
    file = Stored(100)
    assert file.seek(-10, io.SEEK_END) == len(DATA) - 10
    assert file.seek(4, io.SEEK_CUR) == file.tell() == len(DATA) - 6
    assert file.requests == []
    assert file.read(50) == DATA[-6:]
    assert file.seek(len(DATA) + 5) == len(DATA) + 5
    assert file.read(1) == b""


def test_a_position_before_the_start_is_refused():
    with pytest.raises(ValueError, match="s3://b/x: cannot seek to -1"):
        Stored(100).seek(-1)


def test_a_buffered_reader_sees_the_same_bytes():
    with io.BufferedReader(Stored(64), 128) as file:
        file.seek(300)
        assert file.read(500) == DATA[300:800]
        assert file.readable()
        assert file.seekable()
