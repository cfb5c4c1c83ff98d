from types import SimpleNamespace

import pytest

from pipelines.core.config import ConfigError, validate
from pipelines.train.config import Optim, TrainSettings, check_optimizer, config_to_load


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_eight_bit_moments_are_not_sharded(stage):
    tree = {"optim": {"optimizer": "adam8bit"}, "resources": {"zero_stage": stage}}
    with pytest.raises(ConfigError, match=f"optim.optimizer=adam8bit with resources.zero_stage={stage}: .*use zero_st"):
        validate(TrainSettings, tree)
    assert validate(TrainSettings, {**tree, "resources": {"zero_stage": 0}}).optim.optimizer == "adam8bit"


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"optim": {"lr": 0}}, "optim.lr=0: input should be greater than 0"),
        ({"optim": {"warmup_ratio": 2}}, "optim.warmup_ratio=2: input should be less than or equal to 1"),
        (
            {"resources": {"precision": "float16"}},
            "resources.precision='float16': input should be 'auto', 'bfloat16' or",
        ),
        ({"watch": {"spike": 1}}, "watch.spike=1: input should be greater than 1"),
        ({"checkpoints": {"keep_last": 0}}, "checkpoints.keep_last=0"),
    ],
)
def test_settings_that_are_not_allowed_are_named(tree, message):
    with pytest.raises(ConfigError, match=message):
        validate(TrainSettings, tree)


def test_a_missing_optimizer_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("pipelines.train.config.PathFinder", SimpleNamespace(find_spec=lambda name: None))
    check_optimizer(Optim())
    with pytest.raises(ConfigError, match="optim.optimizer=adam8bit: needs bitsandbytes: pip install 'asymflow.gpu.'"):
        check_optimizer(Optim(optimizer="adam8bit"))


def test_a_model_is_loaded_whatever_it_was_trained_on():
    trained = validate(TrainSettings, {"resources": {"workers": 64, "use_gpu": True, "zero_stage": 3}, "seed": 5})
    loaded = validate(TrainSettings, config_to_load(trained.model_dump(mode="json"), seed=6))
    assert (loaded.resources.workers, loaded.resources.zero_stage, loaded.seed) == (1, 0, 6)
    adam8bit = validate(TrainSettings, {"optim": {"optimizer": "adam8bit"}, "resources": {"zero_stage": 0}})
    assert validate(TrainSettings, config_to_load(adam8bit.model_dump(mode="json"))) == adam8bit


def test_a_training_has_no_validation_unless_its_settings_say_so():
    assert TrainSettings().validates_every is None
