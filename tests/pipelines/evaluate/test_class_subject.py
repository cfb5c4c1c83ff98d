import pytest
import torch
from tiny_pretrained import NETWORK, write_pretrained

from asymflow.adapters import SamplingDefaults
from pipelines.core.config import ConfigError
from pipelines.evaluate.class_subject import read_class_model
from pipelines.sample.parameters import SamplingParameters
from pipelines.train.checkpoint import folder_of, write_checkpoint


@pytest.mark.parametrize(("optimizer", "zero_stage"), [("adam8bit", 0), ("adam", 2), ("adam", 0)])
def test_models_of_every_optimizer_and_stage_are_evaluated(tmp_path, optimizer, zero_stage):
    sections = {"optim": {"optimizer": optimizer}, "resources": {"zero_stage": zero_stage}}
    artifact, _ = write_pretrained(tmp_path, **sections)
    assert read_class_model(artifact, None).parts["average"] == "average.safetensors"


def test_sampling_defaults_are_those_of_the_trainings_validation(tmp_path):
    validation = {"steps": 7, "guidance": 2.2}
    artifact, _ = write_pretrained(tmp_path, validation=validation)
    assert read_class_model(artifact, None).defaults == SamplingDefaults(32, 32, 7, 2.2, 1.0, "none")


def test_the_noise_of_the_network_is_named_where_it_is_not_the_usual_one(tmp_path):
    artifact, _ = write_pretrained(tmp_path)
    assert "noise_scale" not in read_class_model(artifact, None).parts
    artifact, _ = write_pretrained(tmp_path, network={**NETWORK, "noise_scale": 2.0})
    subject = read_class_model(artifact, None)
    assert subject.parts["noise_scale"] == "2.0"
    assert subject.defaults.shift == 2.0
    assert subject.identity("trained") == {"model": "trained", **subject.parts}


def test_a_checkpoint_is_named_by_its_own_average(tmp_path):
    artifact, average = write_pretrained(tmp_path, optim={"steps": 9})
    folder = folder_of(artifact.uri)
    with pytest.raises(ConfigError, match="pretrained_step=3: no such checkpoint; there are none; checkpoints.keep_ev"):
        read_class_model(artifact, 3)
    write_checkpoint(folder, {"average": {name: 0 * value for name, value in average.items()}}, {"step": 3}, "a")
    early, end = read_class_model(artifact, 3), read_class_model(artifact, 9)
    assert early.step == 3
    assert early.parts["average"] != end.parts["average"] == "average.safetensors"
    assert end.step is None
    with pytest.raises(ConfigError, match=r"pretrained_step=4: no such checkpoint; there are \[3\]"):
        read_class_model(artifact, 4)


def test_a_sampler_is_of_the_average(tmp_path):
    artifact, _ = write_pretrained(tmp_path)
    sample = read_class_model(artifact, None).sampler("trained", "cpu")
    images = sample(["0", "3"], [1, 1], SamplingParameters(32, 32, 1, 1.0, 1.0, solver="euler"))
    assert images.shape == (2, 3, 32, 32)
    assert not torch.equal(images[0], images[1])
