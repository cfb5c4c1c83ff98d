import numpy as np
import pytest
import torch
from PIL import Image

from asymflow.diffusers_pipeline.canvas import Canvas, masked_region

CPU = torch.device("cpu")


def dotted(*boxes, size=(40, 30)):
    mask = Image.new("L", size)
    for box in boxes:
        mask.paste(255, box)
    return mask


def test_an_image_is_repeated_at_its_border_up_to_whole_patches():
    canvas = Canvas.choose((7, 5), None, None, 4)
    assert (canvas.content, canvas.size) == ((5, 7), (8, 8))
    image = Image.linear_gradient("L").resize((7, 5)).convert("RGB")
    assert canvas.resize(image).tobytes() == image.tobytes()
    tensor = canvas.read([canvas.resize(image)], CPU)
    assert tensor.shape == (1, 3, 8, 8)
    assert torch.equal(canvas.cut(tensor)[0, 0], torch.from_numpy(np.asarray(image)[..., 0] / np.float32(255)))
    assert torch.equal(tensor[..., 5:, :7], tensor[..., 4:5, :7].expand(-1, -1, 3, -1))


def test_an_image_is_resized_to_a_size_that_is_given():
    canvas = Canvas.choose((7, 5), 8, 12, 4)
    assert canvas.content == canvas.size == (8, 12)
    assert canvas.resize(Image.new("RGB", (7, 5))).size == (12, 8)
    assert canvas.place(Image.new("RGB", (12, 8), "red"), (7, 5)).getcolors() == [(35, (255, 0, 0))]


def test_a_region_is_sampled_at_the_size_of_the_image_and_put_back():
    canvas = Canvas.choose((40, 30), None, None, 4, region=(10, 5, 30, 20))
    assert canvas.content == canvas.size == (32, 40)
    placed = canvas.place(Image.new("RGB", (40, 32), "red"), (40, 30))
    assert placed.getbbox() == (10, 5, 30, 20)


@pytest.mark.parametrize(
    ("height", "width", "message"),
    [(8, None, "^width is missing"), (6, 8, "the size 6x8 is not a multiple of 4"), (0, 8, "^height is 0")],
)
def test_a_size_that_cannot_be_sampled_is_named(height, width, message):
    with pytest.raises(ValueError, match=message):
        Canvas.choose((7, 5), height, width, 4)


def test_the_region_holds_what_any_mask_marks_with_its_padding():
    left, top, right, bottom = masked_region([dotted((4, 10, 8, 12)), dotted((12, 10, 14, 14))], 2, None, None)
    assert left <= 2
    assert top <= 8
    assert right >= 16
    assert bottom >= 16
    assert (right - left) / (bottom - top) == pytest.approx(40 / 30, abs=0.15)
    assert masked_region([dotted((4, 10, 8, 14))], 0, 64, 64) == (4, 10, 8, 14)


@pytest.mark.parametrize(
    ("mask", "padding", "message"),
    [
        (dotted(), 4, "^mask_image is black everywhere"),
        (dotted((1, 1, 2, 2)), -3, "^padding_mask_crop is -3"),
        (dotted((1, 1, 2, 2)), True, "^padding_mask_crop is True"),
        (dotted((1, 1, 2, 2)), 2.5, "^padding_mask_crop is 2.5"),
    ],
)
def test_an_empty_mask_or_a_bad_padding_is_named(mask, padding, message):
    with pytest.raises(ValueError, match=message):
        masked_region([mask], padding, None, None)
