import pytest
import torch

from asymflow.moments import PatchMoments
from asymflow.oklab import RELEASED
from asymflow.patches import patchify
from asymflow.subspace import pca_basis
from pipelines.data.basis.moments import choose_patches, in_space, own_space
from pipelines.data.basis.report import merged


def test_random_patches_estimate_all_patches(moments_of):
    """2 of 6 patches: as many are counted, and colours agree within their error."""
    drawn = merged(moments_of(patches_per_image=2))
    whole = merged(moments_of(patches_per_image="all"))
    assert drawn.count == whole.count == 344 * 6
    assert torch.allclose(drawn.channels().mean, whole.channels().mean, atol=0.1)
    assert float((drawn.pixel_gram - whole.pixel_gram).norm() / whole.pixel_gram.norm()) < 0.1
    assert not torch.equal(drawn.pixel_gram, whole.pixel_gram)


def test_precision_of_products(moments_of):
    fast, exact = (merged(moments_of(products, pieces=4, products=products)) for products in ("float32", "float64"))
    error = (fast.pixel_gram - exact.pixel_gram).norm() / exact.pixel_gram.norm()
    assert 0 < error < 1e-6
    A, B = (pca_basis(m.pixel_gram, 16) for m in (fast, exact))
    assert float((A.T @ B).square().sum() / 16) > 1 - 1e-8


def test_patches_are_chosen_by_the_key():
    chosen = choose_patches("a", 4096, 256)
    assert torch.equal(chosen, choose_patches("a", 4096, 256))
    assert not torch.equal(chosen, choose_patches("b", 4096, 256))
    assert len(chosen.unique()) == 256
    assert 0 <= chosen.min()
    assert chosen.max() < 4096
    counts = sum(torch.bincount(choose_patches(str(i), 16, 4), minlength=16) for i in range(4000))
    assert (counts - 1000).abs().max() < 120  # four standard deviations


def test_own_space_is_that_of_the_pixels():
    images = torch.rand(4, 3, 32, 32, dtype=torch.float64) * 2 - 1
    moments = PatchMoments(768)
    moments.update(patchify(RELEASED.encode(images), 16))
    space = own_space(moments)
    direct = PatchMoments(768)
    direct.update(patchify(space.encode(images), 16))
    assert direct.channels().mean.abs().max() < 1e-12
    assert direct.channels().shared_std == pytest.approx(1)
    assert torch.allclose(in_space(moments, space).pixel_gram, direct.pixel_gram, rtol=1e-9, atol=1e-9)
