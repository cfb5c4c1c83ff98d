"""Tars in memory, whole or with chosen damage."""

import io
import tarfile


def tar_of(members, format=tarfile.PAX_FORMAT):
    """Bytes of a tar with members (name, data), in this order."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def sample(key, image=b"image", caption=b"caption", record=b"{}"):
    """Members of one webdataset sample."""
    return [(f"{key}.jpg", image), (f"{key}.txt", caption), (f"{key}.json", record)]


def offset_of(tar, name):
    """Where the header of a member begins."""
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        return opened.getmember(name).offset


def without_end(tar):
    """The tar up to the end of its last member."""
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        last = opened.getmembers()[-1]
    return tar[: last.offset_data + -(-last.size // 512) * 512]


def with_header(tar, name, **fields):
    """The tar with fields of a member's header replaced (`chksum` is made right, unless it is given)."""
    places = {"size": (124, 12), "chksum": (148, 8), "typeflag": (156, 1), "name": (0, 100)}
    start = offset_of(tar, name)
    header = bytearray(tar[start : start + 512])
    for field, value in fields.items():
        place, length = places[field]
        header[place : place + length] = value.ljust(length, b"\0")
    if "chksum" not in fields:
        header[148:156] = b" " * 8
        header[148:156] = f"{sum(header):06o}\0 ".encode()
    return tar[:start] + bytes(header) + tar[start + 512 :]
