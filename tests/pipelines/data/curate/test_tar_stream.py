import gzip
import io

import pytest
from tars import tar_of

from pipelines.data.curate.tar_stream import CUT_OFF, NO_TAR, TOO_LARGE, read_members

FILES = {"a.jpg": b"image" * 300, "b.txt": b"caption"}


def members(data, limit=lambda name: 1 << 20):
    return [(m.name, m.data, m.problem) for m in read_members(io.BufferedReader(io.BytesIO(data)), limit)]


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_members_in_their_order(compress):
    data = compress(tar_of(FILES.items()))
    assert members(data) == [(name, content, "") for name, content in FILES.items()]


def test_data_that_is_not_needed_is_skipped():
    assert members(tar_of(FILES.items()), lambda name: None if name == "a.jpg" else 100)[1] == ("b.txt", b"caption", "")
    assert members(tar_of(FILES.items()), lambda name: 10)[0] == ("a.jpg", b"", TOO_LARGE)


@pytest.mark.parametrize("keep", [700, 512 + 1500 + 100])
def test_a_tar_that_was_cut_off_says_so(keep):
    assert members(tar_of(FILES.items())[:keep])[-1][2] == CUT_OFF


@pytest.mark.parametrize("data", [b"no tar", bytes(range(256)) * 8])
def test_other_files_are_no_tar(data):
    assert [problem for *_, problem in members(data)] == [NO_TAR]


def test_nothing_follows_an_empty_tar():
    assert members(bytes(10_240)) == []
