import pytest

from asymflow.models.jit import SIZES
from pipelines.core.artifacts import hashed_settings
from pipelines.core.config import ConfigError, validate
from pipelines.train.pretrain.config import PretrainSettings

INPUTS = {"curated": "c", "basis": "b"}


def test_defaults_are_the_papers():
    settings = validate(PretrainSettings, INPUTS)
    assert settings.jit == SIZES["H"]
    assert settings.subspace.rank == 8
    assert settings.repa is None
    optim = settings.optim
    assert (optim.lr, optim.betas, optim.batch, optim.weight_decay, optim.clip) == (2e-4, (0.9, 0.95), 1024, 0, None)
    epoch = -(-1_281_167 // optim.batch)
    assert (optim.steps, optim.warmup_steps, optim.cooldown_steps) == (600 * epoch, 5 * epoch, 0)
    assert (settings.time.mean, settings.time.std, settings.loss.sigma_floor) == (0.8, 0.8, 5e-2)
    assert (settings.loss.class_dropout, settings.ema.decay) == (0.1, 0.9999)
    assert settings.flip
    assert settings.classes == 1000
    sampling = settings.validation
    assert (sampling.steps, sampling.sigma_floor, sampling.guidance_interval) == (50, 4e-2, (0.0, 0.88))
    repa = validate(PretrainSettings, {**INPUTS, "repa": {"encoder": "dinov2"}}).repa
    assert (repa.block, repa.weight) == (8, 0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resources": {"zero_stage": 3}}, "resources.zero_stage=3"),
        ({"subspace": {"rank": 769}}, "subspace.rank=769: a patch has 768 values"),
        ({"basis": ""}, "basis: missing; subspace.rank=8 of a PCA"),
        ({"repa": {"encoder": "x", "block": 33}}, "repa.block=33: the network has 32 blocks"),
        ({"network": {"heads": 7}}, "multiple of 4"),
        ({"network": {"context_from": 40}}, "context_from is 40"),
        ({"optim": {"optimizer": "adam8bit"}}, "optim.optimizer=adam8bit with resources.zero_stage=2"),
    ],
)
def test_invalid_settings_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        validate(PretrainSettings, {**INPUTS, **changes})


@pytest.mark.parametrize("subspace", [{"rank": 0}, {"rank": 768}, {"rank": 8, "kind": "random"}])
def test_no_basis_is_needed_at_the_ends_of_the_family_nor_for_a_random_subspace(subspace):
    assert not validate(PretrainSettings, {"curated": "c", "subspace": subspace}).needs_basis


def test_resources_are_not_hashed():
    plain = validate(PretrainSettings, INPUTS)
    elsewhere = {"resources": {"workers": 8, "zero_stage": 1}, "validation": None, "checkpoints": {"every": 3}}
    assert hashed_settings(validate(PretrainSettings, {**INPUTS, **elsewhere})) == hashed_settings(plain)
    assert hashed_settings(validate(PretrainSettings, {**INPUTS, "flip": False})) != hashed_settings(plain)
