import numpy as np
import pytest
from PIL import Image

from asymflow.diffusers_pipeline.images import (
    composite,
    expand_canvas,
    over_white,
    read_images,
    read_masks,
    with_alpha_of,
)

GRAY = Image.linear_gradient("L").resize((6, 5))
CLEAR = Image.merge("RGBA", (GRAY, GRAY, GRAY, GRAY))


def palette(transparent):
    image = GRAY.convert("RGB").quantize(8)
    if transparent:
        image.info["transparency"] = 0
    return image


@pytest.mark.parametrize(
    ("image", "mode"),
    [
        (GRAY, "RGB"), (GRAY.convert("1"), "RGB"), (GRAY.convert("LA"), "RGBA"), (palette(False), "RGB"),
        (palette(True), "RGBA"), (GRAY.convert("CMYK"), "RGB"), (CLEAR, "RGBA"),
    ],
)  # fmt: skip
def test_gray_palette_and_transparent_images_keep_their_colors(image, mode):
    (found,) = read_images(image)
    assert found.mode == mode
    assert found.tobytes() == image.convert(mode).tobytes()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (None, "^image is missing"),
        ([], r"^image is \[\]"),
        ("fox.png", "^image is 'fox.png'"),
        ([GRAY, None], r"^image\[1\] is None"),
        (Image.new("I;16", (6, 5)), r"^image\[0\] has mode I;16; convert it to 8 bits"),
        (Image.new("F", (6, 5)), r"^image\[0\] has mode F"),
        ([GRAY, GRAY.resize((5, 6))], r"^image\[1\] is 5x6, but image\[0\] is 6x5"),
    ],
)
def test_what_cannot_be_edited_is_named(images, message):
    with pytest.raises(ValueError, match=message):
        read_images(images)


def test_masks_are_gray_and_of_the_images_size():
    (mask,) = read_masks(GRAY.convert("RGB"), (6, 5))
    assert mask.mode == "L"
    assert mask.tobytes() == GRAY.tobytes()
    with pytest.raises(ValueError, match="^mask_image is 6x5, but image is 5x6; give a mask of its size"):
        read_masks(GRAY, (5, 6))
    with pytest.raises(ValueError, match="^mask_image is missing"):
        read_masks(None, (5, 6))


def test_transparency_is_shown_on_white():
    assert over_white(Image.new("RGBA", (1, 1), (10, 20, 30, 0))).getpixel((0, 0)) == (255, 255, 255)
    assert over_white(Image.new("RGBA", (1, 1), (10, 20, 30, 255))).getpixel((0, 0)) == (10, 20, 30)
    sample = Image.new("RGB", (6, 5), "red")
    assert with_alpha_of(CLEAR, sample).getchannel("A").tobytes() == GRAY.tobytes()
    assert with_alpha_of(sample, sample) is sample


def test_composite_takes_bytes_of_one_or_blends():
    original, sample = GRAY.convert("RGB"), Image.new("RGB", (6, 5), (200, 100, 0))
    assert composite(original, sample, Image.new("L", (6, 5), 0)).tobytes() == original.tobytes()
    assert composite(original, sample, Image.new("L", (6, 5), 255)).tobytes() == sample.tobytes()
    half = np.asarray(composite(original, sample, Image.new("L", (6, 5), 128)), float)
    exact = (128 * np.asarray(sample, float) + 127 * np.asarray(original, float)) / 255
    assert abs(half - exact).max() <= 0.5


def test_composite_of_a_transparent_image_is_opaque_where_sampled():
    original = Image.new("RGBA", (2, 1), (7, 8, 9, 0))
    mask = Image.new("L", (2, 1), 0)
    mask.putpixel((1, 0), 128)
    found = composite(original, Image.new("RGB", (2, 1), (200, 100, 0)), mask)
    assert found.getpixel((0, 0)) == (7, 8, 9, 0)  # also the hidden color
    assert found.getpixel((1, 0)) == (200, 100, 0, 128)  # and it does not shine through


def test_an_expanded_canvas_repeats_the_border_and_masks_what_was_added():
    image, mask = expand_canvas(GRAY.convert("RGB"), left=2, bottom=3)
    assert image.size == mask.size == (8, 8)
    assert image.crop((2, 0, 8, 5)).tobytes() == GRAY.convert("RGB").tobytes()
    assert image.getpixel((0, 2)) == image.getpixel((2, 2))
    assert image.getpixel((5, 7)) == image.getpixel((5, 4))
    weight = np.asarray(mask)
    assert (weight[:5, 2:] == 0).all()
    assert (weight[5:] == 255).all()
    assert (weight[:, :2] == 255).all()


def test_a_soft_edge_rises_to_the_side_that_was_extended():
    _, mask = expand_canvas(GRAY, right=2, overlap=3)
    assert np.asarray(mask)[0].tolist() == [0, 0, 0, 64, 127, 191, 255, 255]
    assert (np.asarray(mask) == np.asarray(mask)[0]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "^left, top, right, bottom: all are 0"),
        ({"left": -1}, "^left is -1; it must be an integer of at least 0"),
        ({"top": 2.5}, "^top is 2.5"),
        ({"right": 4, "overlap": 6}, "^overlap is 6; it must leave a part of the image, which is 6x5"),
    ],
)
def test_what_cannot_be_added_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        expand_canvas(GRAY, **arguments)
