import pytest
import torch
from tiny_pretrained import write_pretrained

from asymflow.guidance import Guidance, guide
from pipelines.train.pretrain.config import Validation
from pipelines.train.pretrain.model import load_pretrained
from pipelines.train.pretrain.sampling import class_velocity, guidance_of, sample_classes


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_pretrained(write_pretrained(tmp_path_factory.mktemp("model"))[0])


@pytest.mark.parametrize(("sigma", "guided"), [(0.5, True), (0.95, False)])
def test_guidance_is_against_no_class_and_within_its_interval(model, sigma, guided):
    labels, sigmas = torch.tensor([0, 3]), torch.full((2,), sigma)
    x_t, floor = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), 0.04
    velocity = class_velocity(model, labels, guidance_of(Validation(guidance=2.0)), floor)
    with torch.no_grad():
        with_class, without = (model(x_t, sigmas, which, floor) for which in (labels, torch.full_like(labels, 4)))
        expected = guide(with_class, without, x_t, sigmas, 2.0, orthogonal=False) if guided else with_class
        torch.testing.assert_close(velocity(x_t, sigmas), expected)
    assert not torch.equal(with_class, without)


def test_the_settings_guidance_is_not_orthogonal():
    assert guidance_of(Validation()) == Guidance(Validation().guidance, False, (0.0, 0.88))


@pytest.mark.parametrize("training", [True, False])
def test_images_are_sampled_in_evaluation_mode_and_the_mode_is_restored(model, training):
    seen = []
    hook = model.network.blocks[0].register_forward_pre_hook(lambda module, _: seen.append(module.training))
    model.train(training)
    images = sample_classes(model, torch.randn(2, 3, 32, 32), torch.tensor([0, 1]), Validation(steps=2))
    hook.remove()
    assert not any(seen)
    assert len(seen) > 2
    assert model.training == training
    assert images.shape == (2, 3, 32, 32)
    assert images.dtype == torch.float32
    assert images.is_contiguous()
    model.eval()
