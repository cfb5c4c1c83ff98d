from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torchvision.models import squeezenet1_1

from asymflow.content import content_of
from asymflow.metrics.squeeze import FILE, SqueezeFeatures
from asymflow.metrics.weights import MissingWeights

FOLDER = Path(__file__).parents[3] / "models/toy_klein"


@pytest.fixture(scope="module")
def features():
    return SqueezeFeatures(str(FOLDER))


def test_features_are_means_of_the_last_layer(features):
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    network = squeezenet1_1().features.eval()
    network.load_state_dict({k: v.float() for k, v in load_file(FOLDER / FILE).items()})
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (images / 255 - mean[:, None, None]) / std[:, None, None]
    with torch.no_grad():
        expected = network(x).mean((2, 3))
    found = features(images)
    assert found.shape == (3, 512)
    torch.testing.assert_close(found, expected, atol=2e-2, rtol=1e-2)  # lpips rounds its constants
    torch.testing.assert_close(features(images[1:2])[0], found[1])
    assert features.protocol["model"] == f"local:{content_of(FOLDER / FILE)}"


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(MissingWeights, match="needed is a safetensors file of SqueezeNet 1.1's features, such as mod"):
        SqueezeFeatures(str(tmp_path / "none.safetensors"))
