import pytest
import torch
from tiny_pretrained import write_pretrained

from asymflow.guidance import Guidance
from asymflow.samplers import heun
from pipelines.sample.parameters import SamplingParameters
from pipelines.train.pretrain.model import load_pretrained
from pipelines.train.pretrain.sampler import ClassSampler
from pipelines.train.pretrain.sampling import class_velocity

PARAMETERS = SamplingParameters(
    32, 32, 3, 2.0, 1.5, interval=(0.0, 0.9), orthogonal=False, clamp=False, solver="heun", sigma_floor=0.05
)


@pytest.fixture(scope="module")
def sampler(tmp_path_factory):
    return ClassSampler(load_pretrained(write_pretrained(tmp_path_factory.mktemp("model"))[0]), "cpu")


def test_parameters_reach_the_solver(sampler):
    steps = []
    found = sampler(["0", "3"], [5, 6], PARAMETERS, lambda step, x_0: steps.append(step))
    velocity = class_velocity(sampler.model, torch.tensor([0, 3]), Guidance(2.0, False, (0.0, 0.9)), 0.05)
    with torch.no_grad():
        x_0 = heun(velocity, PARAMETERS.noise([5, 6]), 3, 1.5)
    torch.testing.assert_close(found, sampler.model.subspace.space.decode(x_0))
    assert steps == [0, 1, 2]


def test_an_image_depends_on_its_class_and_seed_alone(sampler):
    together = sampler(["1", "1", "2"], [7, 8, 7], PARAMETERS)
    for i, (label, seed) in enumerate([("1", 7), ("1", 8), ("2", 7)]):
        torch.testing.assert_close(sampler([label], [seed], PARAMETERS)[0], together[i], rtol=0, atol=1e-5)
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(together[0], together[2])
