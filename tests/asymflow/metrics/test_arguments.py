import pytest
import torch

from asymflow.metrics.arguments import check_images, check_pairs, to_pil_images

IMAGES = torch.zeros(2, 3, 4, 5, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("images", "named"),
    [
        (IMAGES.float(), r"torch.float32 \(2, 3, 4, 5\)"),
        (IMAGES[0], r"torch.uint8 \(3, 4, 5\)"),
        (IMAGES.movedim(1, -1), r"torch.uint8 \(2, 4, 5, 3\)"),
    ],
)
def test_other_images_are_refused_with_their_type_and_shape(images, named):
    with pytest.raises(ValueError, match=rf"images are {named}; expected uint8 \(B, 3, H, W\)"):
        check_images(images)


def test_as_many_prompts_as_images_are_needed():
    check_pairs(IMAGES, ["a", "b"])
    with pytest.raises(ValueError, match="2 images need as many prompts; got 1"):
        check_pairs(IMAGES, ["a"])


def test_pil_images_have_the_same_values():
    images = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = to_pil_images(images)
    assert [image.size for image in found] == [(5, 4)] * 2
    assert found[1].getpixel((3, 2)) == tuple(images[1, :, 2, 3].tolist())
    assert to_pil_images(images[:0]) == []
