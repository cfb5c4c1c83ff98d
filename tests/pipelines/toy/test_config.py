import pytest

from pipelines.core.config import ConfigError, validate
from pipelines.toy.config import DemoDataSettings, Steps, ToyBaseSettings, ToyEncoderSettings


@pytest.mark.parametrize("settings", [DemoDataSettings, ToyBaseSettings, ToyEncoderSettings, Steps])
def test_every_setting_has_a_default(settings):
    assert validate(settings, {}) == settings()


@pytest.mark.parametrize(
    ("settings", "tree", "message"),
    [
        (DemoDataSettings, {"photos": -1}, "photos=-1: input should be greater than or equal to 0"),
        (ToyBaseSettings, {"steps": {"flow": 0}}, "steps.flow=0: input should be greater than or equal to 1"),
        (ToyBaseSettings, {"out": ""}, "out='': string should have at least 1 character"),
        (ToyEncoderSettings, {"steps": {"flow": 3}}, "steps=.*integer"),
    ],
)
def test_settings_that_are_not_allowed_are_named(settings, tree, message):
    with pytest.raises(ConfigError, match=message):
        validate(settings, tree)
