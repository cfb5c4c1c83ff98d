"""Uploaded files, valid and hostile."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from pipelines.core.config import ConfigError
from pipelines.sample import page_uploads
from pipelines.sample.page_uploads import (
    MAX_REFERENCES,
    PageStore,
    canvas_of,
    read_mask,
    read_references,
    read_upload,
    sampled_size,
)

IMAGE = Image.merge("RGB", [Image.linear_gradient("L").resize((40, 30)).rotate(turn) for turn in (0, 90, 180)])


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width, height):
    """A PNG that claims a size and has no pixels."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
def test_images_keep_their_pixels(tmp_path, mode):
    path = tmp_path / "upload"
    path.write_bytes(encoded(IMAGE.convert(mode)))
    found = read_upload(str(path), "image")
    assert found.mode == ("RGBA" if mode == "RGBA" else "RGB")
    assert found.tobytes() == IMAGE.convert(mode).convert(found.mode).tobytes()


def test_photographs_are_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    assert read_upload(encoded(IMAGE, "JPEG", exif=exif), "image").size == (30, 40)
    assert read_upload(encoded(IMAGE, "WEBP", lossless=True), "image").tobytes() == IMAGE.tobytes()


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (None, "image: missing; upload an image"),
        (b"<svg/>", "image: not a readable image; allowed formats: PNG, JPEG, WEBP"),
        (encoded(IMAGE, "GIF"), "image: not a readable image"),
        (encoded(IMAGE, "BMP"), "image: not a readable image"),
        (encoded(IMAGE)[:-60], "image: not a readable image"),
        (png_header(4097, 4096), "image: has 4097x4096 pixels; at most 16777216 are allowed"),
        (png_header(60_000, 60_000), "image: has too many pixels; at most 16777216 are allowed"),
        (png_header(401, 100), "image: is 401x100; one side may be at most 4 times the other"),
        (encoded(IMAGE, save_all=True, append_images=[IMAGE.rotate(9)]), "image: is an animation"),
        (encoded(Image.new("I;16", (8, 8))), r"image\[0\] has mode I;16; convert it to 8 bits"),
    ],
)
def test_bad_files(file, message):
    with pytest.raises(ConfigError, match=message) as error:
        read_upload(file, "image")
    assert "\n" not in str(error.value)
    assert "/tmp" not in str(error.value)


def test_a_file_that_is_too_long_is_not_opened(monkeypatch):
    monkeypatch.setattr(page_uploads, "MAX_BYTES", 100)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("it was opened"))
    with pytest.raises(ConfigError, match="the file has 1000 bytes; at most 100 are allowed"):
        read_upload(b"x" * 1000, "image")


def layer(box, size=(512, 384)):
    found = Image.new("RGBA", size)
    found.paste((255, 0, 255, 255), box)
    return encoded(found)


def test_masks_are_hard_and_of_the_images_size():
    mask = read_mask(layer((128, 96, 256, 192)), (40, 30))
    expected = np.zeros((30, 40), np.uint8)
    expected[7:15, 10:20] = 255
    assert mask.mode == "L"
    assert set(mask.tobytes()) == {0, 255}
    assert (np.asarray(mask) != expected).sum() <= 10  # a row at half a pixel
    assert mask.getbbox() in [(10, 7, 20, 15), (10, 8, 20, 15)]


@pytest.mark.parametrize(
    ("painted", "message"),
    [
        (None, "mask: nothing is painted"),
        (encoded(Image.new("RGBA", (512, 384))), "mask: nothing is painted"),
        (layer((0, 0, 2, 2)), "mask: less than a pixel is painted"),
        (b"x", "mask: not a readable image"),
    ],
)
def test_masks_without_a_use(painted, message):
    with pytest.raises(ConfigError, match=message):
        read_mask(painted, (40, 30))


def test_references(tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(encoded(IMAGE))
    (same,) = read_references([(str(path), None)], 1200)
    (small,) = read_references([(str(path), "a caption")], 300)
    assert same.tobytes() == IMAGE.tobytes()
    assert small.size == (20, 15)
    for files in (None, [], [(str(path), None)] * (MAX_REFERENCES + 1)):
        with pytest.raises(ConfigError, match=f"references: {len(files or [])} images; give 1 to {MAX_REFERENCES}"):
            read_references(files, 300)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((64, 64), (64, 64)), ((62, 41), (40, 64)), ((640, 640), (64, 64)), ((400, 100), (32, 128)), ((1, 1), (4, 4))],
)
def test_size_of_the_sample(size, expected):
    assert sampled_size(Image.new("L", size), 64 * 64, 4) == expected


def test_canvas_of_the_mask_editor():
    assert canvas_of(Image.new("RGB", (40, 30))).size == (512, 384)
    assert canvas_of(Image.new("RGB", (1000, 3000))).size == (171, 512)


def test_old_files_are_removed_and_a_full_folder_takes_no_more(tmp_path):
    old, new = tmp_path / "a/old.png", tmp_path / "a/new.png"
    old.parent.mkdir()
    for path in (old, new):
        path.write_bytes(b"x" * 1000)
    store = PageStore(tmp_path, max_bytes=page_uploads.MAX_BYTES + 10_000 + tmp_path.stat().st_size)
    assert store.has_room()
    assert old.exists()
    os.utime(old, (1, 1))
    assert store.has_room()
    assert not old.exists()
    assert new.exists()
    new.write_bytes(b"x" * 20_000)
    assert not store.has_room()
