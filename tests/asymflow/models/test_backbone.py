import inspect

import diffusers
import pytest

from asymflow.models.latent import families

BACKBONES = [family.backbone for family in families()]


@pytest.mark.parametrize("backbone", BACKBONES, ids=lambda backbone: backbone.transformer)
def test_missing_settings_have_the_defaults_of_the_class(backbone):
    parameters = inspect.signature(getattr(diffusers, backbone.transformer).__init__).parameters
    complete = backbone.complete({"in_channels": 7})
    assert complete.pop("_class_name") == backbone.transformer
    assert complete == {n: 7 if n == "in_channels" else p.default for n, p in parameters.items() if n != "self"}


@pytest.mark.parametrize("backbone", BACKBONES, ids=lambda backbone: backbone.transformer)
def test_adapters_repeat_settings_of_the_class(backbone):
    assert set(backbone.adapter_keys) <= backbone.complete({}).keys()
