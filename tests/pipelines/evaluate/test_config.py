import pytest

from pipelines.core.config import ConfigError, validate
from pipelines.evaluate.config import EvaluateSettings


def test_every_setting_has_a_default():
    settings = validate(EvaluateSettings, {})
    assert (settings.suite, settings.models, settings.images_per_prompt) == ("demo", None, None)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"suite": "cocoo"}, "suite='cocoo': input should be 'demo', 'classes', 'coco10k'"),
        ({"models": ["latent", "latent"]}, "models=.*: a model is given twice"),
        ({"models": []}, "models=.*at least 1"),
        ({"models": ["best"]}, "models.0='best': input should be 'latent', 'lifted' or 'trained'"),
        ({"bootstrap": {"level": 1}}, "bootstrap.level=1: input should be less than 1"),
        ({"pretrained_step": 0}, "pretrained_step=0: input should be greater than or equal to 1"),
        ({"scorers": {"fid": {}}}, "scorers.fid=.*unknown key"),
        ({"shown": 0}, "shown=0"),
    ],
)
def test_settings_that_are_not_allowed_are_named(tree, message):
    with pytest.raises(ConfigError, match=message):
        validate(EvaluateSettings, tree)
