import pytest

from pipelines.core.artifacts import hashed_settings
from pipelines.core.config import ConfigError, validate
from pipelines.train.finetune.config import FinetuneSettings

INPUTS = {"curated": "c", "encoded": "e", "basis": "b", "base": "m"}


def test_defaults_are_the_papers():
    settings = validate(FinetuneSettings, INPUTS)
    assert settings.optim.batch == 256
    assert settings.optim.steps == 15_000
    assert (settings.optim.lr, settings.optim.lr_proj_out, settings.optim.betas) == (1e-4, 1e-3, (0.9, 0.95))
    assert (settings.lora.rank, settings.lora.dropout, settings.time.shift) == (256, 0.05, 17.0)
    assert (settings.loss.kappa, settings.loss.perceptual.weight, settings.loss.perceptual.net) == (0.3, 0.2, "vgg")
    assert settings.ema.gamma == 7.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resources": {"zero_stage": 4}}, "resources.zero_stage=4"),
        ({"loss": {"granularity": "pixel"}}, "loss.granularity='pixel'"),
        ({"optim": {"rate": 1}}, "optim.rate"),
        (
            {"optim": {"optimizer": "adam8bit"}, "resources": {"zero_stage": 2}},
            "^optim.optimizer=adam8bit with resources.zero_stage=2: sharding cuts through.*use zero_stage=0",
        ),
        ({"model": "latent"}, "^model=latent with loss.kind=variance_reduced: .*use loss.kind=flow_matching"),
        (
            {"base_quantization": "nf4", "resources": {"zero_stage": 3}},
            "^base_quantization=nf4 with resources.zero_stage=3: sharding would cut through.*use zero_stage=0, 1 or 2",
        ),
        ({"model": "l2p", "loss": {"kind": "flow_matching"}}, "^model=l2p with lora: .* use lora=null"),
        ({"base_quantization": "int4"}, "base_quantization='int4'"),
        ({"base_quantization": "fp8"}, "^base_quantization=fp8 with resources.gradient_checkpointing=false: "),
        ({"export": {"alias": "1st"}}, "export.alias='1st'"),
    ],
)
def test_invalid_settings_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        validate(FinetuneSettings, {**INPUTS, **changes})


def test_resources_and_monitoring_are_not_hashed():
    plain = validate(FinetuneSettings, INPUTS)
    elsewhere = {
        "resources": {"workers": 8, "zero_stage": 3, "micro_batch": 1, "compile": True},
        "checkpoints": {"every": 1, "keep_every": 5},
        "validation": None,
        "watch": {"hang_minutes": 5},
        "export": {"alias": "best"},
    }
    assert hashed_settings(validate(FinetuneSettings, {**INPUTS, **elsewhere})) == hashed_settings(plain)
    assert hashed_settings(validate(FinetuneSettings, {**INPUTS, "seed": 1})) != hashed_settings(plain)


def test_settings_of_the_released_training_leave_the_ids_of_other_trainings_alone():
    kept = hashed_settings(validate(FinetuneSettings, INPUTS))
    assert "l2p" not in kept
    assert "text_padding" not in kept
    assert "warmup_ratio" not in kept["optim"]
    assert "base_quantization" not in kept
    changed = {"text_padding": "max_length", "optim": {"warmup_ratio": 1e-3}, "base_quantization": "nf4"}
    kept = hashed_settings(validate(FinetuneSettings, {**INPUTS, **changed}))
    found = kept["text_padding"], kept["optim"]["warmup_ratio"], kept["base_quantization"]
    assert found == ("max_length", 1e-3, "nf4")
