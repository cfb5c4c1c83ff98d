import pytest

from pipelines.config import ConfigError, validate
from pipelines.finetune.config import FinetuneSettings

INPUTS = {"curated": "c", "encoded": "e", "basis": "b", "base": "m"}


def test_defaults_are_the_papers():
    settings = validate(FinetuneSettings, INPUTS)
    assert settings.optim.batch == 256 and settings.optim.steps == 15_000
    assert (settings.optim.lr, settings.optim.lr_proj_out, settings.optim.betas) == (1e-4, 1e-3, (0.9, 0.95))
    assert (settings.lora.rank, settings.lora.dropout, settings.time.shift) == (256, 0.05, 17.0)
    assert (settings.loss.kappa, settings.loss.perceptual.weight, settings.loss.perceptual.net) == (0.3, 0.2, "vgg")
    assert settings.ema.gamma == 7.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim": {"batch": 10}, "resources": {"workers": 3}}, "optim.batch=10 does not divide by 3 workers"),
        ({"optim": {"batch": 8}, "resources": {"micro_batch": 3}}, "micro_batch=3 does not divide"),
        ({"resources": {"zero_stage": 1}}, "resources.zero_stage=1"),
        ({"loss": {"granularity": "pixel"}}, "loss.granularity='pixel'"),
        ({"optim": {"rate": 1}}, "optim.rate"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        validate(FinetuneSettings, {**INPUTS, **changes})
