import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.viz.image_grid import grid_of, join_horizontally, join_vertically, side_by_side, thumbnail, to_pil_images


def solid(color, size=(4, 2)):
    return Image.new("RGB", size, color)


def test_pixels_are_rounded_and_clamped():
    levels = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).view(1, 1, 1, 5).expand(2, 3, 4, 5)
    images = to_pil_images(levels)
    assert len(images) == 2
    assert images[0].size == (5, 4)
    assert np.asarray(images[0])[0, :, 0].tolist() == [0, 0, 128, 255, 255]


def test_images_go_row_by_row_with_a_gap():
    grid = grid_of([solid(color) for color in ("red", "lime", "blue")], columns=2, gap=1)
    assert grid.size == (2 * 5 + 1, 2 * 3 + 1)
    places = {(1, 1): (255, 0, 0), (6, 1): (0, 255, 0), (1, 4): (0, 0, 255), (6, 4): (255,) * 3, (0, 0): (255,) * 3}
    assert {place: grid.getpixel(place) for place in places} == places


def test_images_are_enlarged_by_whole_pixels():
    assert grid_of([solid("red")], columns=1, scale=3, gap=0).size == (12, 6)


def test_a_row_has_one_image_of_each_column_and_its_caption():
    columns = {"a": [solid("red"), solid("lime")], "b": [solid("blue"), solid("black")]}
    found = side_by_side(columns, ["first", "second"], scale=1)
    grid = grid_of([solid(color) for color in ("red", "blue", "lime", "black")], columns=2)
    assert found.size == (grid.width + 260, grid.height + 20)
    assert found.crop((0, 20, grid.width, 20 + grid.height)).tobytes() == grid.tobytes()
    texts = np.asarray(found.crop((grid.width, 0, *found.size)))
    assert texts[22:].min() < 255  # captions, beside the images and below the titles


@pytest.mark.parametrize(
    ("size", "expected"),
    [((64, 32), (256, 128)), ((100, 50), (200, 100)), ((512, 256), (256, 128)), ((256, 9), (256, 9))],
)
def test_thumbnails_fit_a_square(size, expected):
    image = solid("red", size)
    assert thumbnail(image).size == expected
    assert image.size == size


def test_joined_images_are_on_white():
    joined = join_horizontally(solid("red", (2, 1)), solid("blue", (3, 4)))
    assert joined.size == (5, 4)
    assert [joined.getpixel(p) for p in ((1, 0), (1, 3), (4, 3))] == [(255, 0, 0), (255,) * 3, (0, 0, 255)]


def test_images_are_joined_downwards_on_white():
    joined = join_vertically([solid("red", (4, 2)), solid("lime", (6, 3))])
    assert joined.size == (6, 5)
    places = {(0, 0): (255, 0, 0), (5, 0): (255, 255, 255), (0, 2): (0, 255, 0), (5, 4): (0, 255, 0)}
    assert {place: joined.getpixel(place) for place in places} == places
