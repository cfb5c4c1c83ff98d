import pytest
import torch

from asymflow.patches import LAYOUTS, layout_order, patchify, take_patches, unpatchify


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("layout", ["channel_first", "channel_last"])
def test_round_trip(layout):
    images = torch.randn(2, 3, 12, 8, dtype=torch.float64)
    tokens = patchify(images, 4, layout)
    assert tokens.shape == (2, 6, 48)
    assert tokens.dtype == torch.float64
    assert torch.equal(unpatchify(tokens, 12, 8, 4, layout=layout), images)


def test_packing_orders():
    images = torch.arange(2 * 4 * 4).view(1, 2, 4, 4)
    first, last = patchify(images, 2), patchify(images, 2, "channel_last")
    # Second patch of the first row of patches: rows 0-1, columns 2-3.
    assert first[0, 1].tolist() == [2, 3, 6, 7, 18, 19, 22, 23]
    assert last[0, 1].tolist() == [2, 18, 3, 19, 6, 22, 7, 23]
    assert torch.equal(first.unflatten(-1, (2, 4)).transpose(-1, -2).flatten(-2), last)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: patchify(torch.zeros(1, 3, 8, 9), 4), "8x9 is not a multiple of patch_size 4"),
        (
            lambda: patchify(torch.zeros(1, 3, 8, 8), 4, "rows"),
            "'rows'; allowed: channel_first, channel_last",
        ),
        (lambda: patchify(torch.zeros(3, 8, 8), 4), r"\(3, 8, 8\); expected \(B, C, H, W\)"),
        (lambda: patchify(torch.zeros(1, 3, 8, 8), 0), "patch_size is 0"),
        (lambda: unpatchify(torch.zeros(1, 4, 47), 8, 8, 4), "D=47.* needs N=4, D=48"),
        (lambda: unpatchify(torch.zeros(4, 48), 8, 8, 4), r"expected \(B, N, D\)"),
    ],
)
def test_errors_are_readable(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize(("source", "target"), [(a, b) for a in LAYOUTS for b in LAYOUTS])
def test_layout_order_brings_one_packing_into_another(source, target):
    images = torch.rand(2, 3, 8, 12)
    order = layout_order(4, source, target)
    assert torch.equal(patchify(images, 4, source)[..., order], patchify(images, 4, target))


def test_some_patches_are_those_of_all():
    images = torch.randint(0, 256, (3, 8, 12, 3), dtype=torch.uint8).permute(0, 3, 1, 2)  # as decoders lay them out
    indices = torch.stack([torch.randperm(6)[:4] for _ in images])
    expected = patchify(images, 4).take_along_dim(indices[..., None], 1)
    assert torch.equal(take_patches(images, indices, 4), expected)
