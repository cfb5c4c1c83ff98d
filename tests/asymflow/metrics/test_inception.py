import hashlib
import math

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from asymflow.metrics.image_rules import prepare
from asymflow.metrics.inception import FILE, SCRIPTS, Inception
from asymflow.metrics.inception_network import Inception2015, ScriptedInception
from asymflow.metrics.protocol import fingerprint

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # NVIDIA's file is what it is


def filled(generator):
    """Every parameter and buffer with values of its own, so that none can be left out or mixed up unseen."""
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in Inception2015().state_dict().items()}
    state = {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=generator)
        if name.endswith("num_batches_tracked"):
            value = torch.tensor(7)
        elif value.ndim > 1:
            value = value * math.sqrt(2 / shape[1:].numel())
        elif name.endswith(("running_var", "bn.weight")):
            value = 0.5 + value.abs()
        state[name] = value
    return state


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / FILE
    torch.save(filled(torch.Generator().manual_seed(0)), path)
    return path


@pytest.fixture(scope="module")
def inception(weights):
    return Inception.load(str(weights), resize="none")


@pytest.fixture(scope="module")
def reference(weights):
    """torch-fidelity's pool3, logits and the branch that sFID takes, channels last, of the same weights."""
    network = FeatureExtractorInceptionV3("reference", ["2048", "logits_unbiased"], str(weights))
    branch = []
    network.Mixed_6d.branch1x1.register_forward_hook(lambda module, inputs, output: branch.append(output))

    def features(images):
        pool, logits = network(images)
        return pool, logits, branch.pop().movedim(1, -1)[..., :7].reshape(len(images), -1)

    return features


def pictures(side, count=2, seed=0):
    return torch.randint(0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def close(found, expected, rel=1e-5):
    assert found.dtype == torch.float32
    assert found.device.type == "cpu"
    assert found.shape == expected.shape
    return (found - expected).norm() < rel * expected.norm() and expected.std() > 0.01 * expected.abs().mean()


@pytest.mark.parametrize("side", [256, 340])
def test_equals_torch_fidelity(inception, reference, side):
    images = pictures(side)
    found, (pool, logits, spatial) = inception.features(images), reference(images)
    assert pool.shape == (2, 2048)
    assert logits.shape == (2, 1008)
    assert spatial.shape == (2, 2023)
    assert close(found.pool, pool)
    assert close(found.logits, logits)
    assert close(found.spatial, spatial)


def test_an_image_is_resized_by_the_rule_before_the_network(weights, reference):
    images = pictures(330, count=1)
    for resize, rounding in (("bicubic", "truncate"), ("centre_crop", "round")):
        found = Inception.load(str(weights), resize=resize, rounding=rounding).features(images)
        assert close(found.pool, reference(prepare(images, resize, rounding))[0])


def test_an_image_does_not_depend_on_its_batch(inception):
    images = pictures(75, count=3)
    together, alone = inception.features(images), inception.features(images[1:2])
    for name in ("pool", "logits", "spatial"):
        assert close(getattr(together, name)[1:2], getattr(alone, name))


def test_safetensors_without_counters_are_the_same_model(weights, tmp_path, inception):
    state = {name: x for name, x in torch.load(weights, weights_only=True).items() if "num_batches" not in name}
    save_file(state, tmp_path / "inception.safetensors")
    again = Inception.load(str(tmp_path), file="inception.safetensors", resize="none")
    assert torch.equal(again.features(pictures(80, 1)).pool, inception.features(pictures(80, 1)).pool)
    assert again.protocol["model"] != inception.protocol["model"]  # the file is another


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda state: state.pop("Mixed_7c.branch1x1.bn.running_mean"), "Mixed_7c.branch1x1.bn.running_mean"),
        (lambda state: state.update({"fc.bias": torch.zeros(1000)}), "fc.bias"),  # torchvision's own
        (lambda state: state.update({"more": torch.zeros(1)}), "more"),
        (lambda state: state["fc.weight"].fill_(torch.nan), "fc.weight holds NaN"),
        (lambda state: state.update({"epoch": 3}), "more than named tensors"),
    ],
)
def test_other_weights(weights, tmp_path, change, named):
    state = torch.load(weights, weights_only=True)
    change(state)
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=named):
        Inception.load(str(tmp_path / "other.pth"))


def test_invalid_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=f"has no {FILE}: needed is the FID Inception of 2015"):
        Inception.load(str(tmp_path))
    for name in ("text.pth", "text.safetensors"):
        (tmp_path / name).write_text("not weights")
        with pytest.raises(ValueError, match=f"{name} is not the FID Inception"):
            Inception.load(str(tmp_path / name))
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")  # would run code of its own
    with pytest.raises(ValueError, match="module.pth is not the FID Inception"):
        Inception.load(str(tmp_path / "module.pth"))


class Colours(nn.Module):
    """A network with the interface of NVIDIA's, of which the features are mean colours."""

    def __init__(self, outputs: int = 1008):
        super().__init__()
        self.output = nn.Linear(3, outputs)

    def forward(
        self, img: torch.Tensor, return_features: bool = False, use_fp16: bool = False, no_output_bias: bool = False
    ) -> torch.Tensor:
        features = img.to(torch.float32).mean([2, 3]) / 255
        if return_features:
            return features
        if no_output_bias:
            return (features @ self.output.weight.t()).softmax(1)
        return self.output(features).softmax(1)


def know(monkeypatch, path):
    """The network is NVIDIA's by its interface alone, so its hash is not the published one."""
    monkeypatch.setitem(SCRIPTS, hashlib.sha256(path.read_bytes()).hexdigest(), path.name)


def test_nvidias_torchscript(tmp_path, monkeypatch):
    script = torch.jit.script(Colours())
    script.save(tmp_path / "inception-2015-12-05.pt")
    know(monkeypatch, tmp_path / "inception-2015-12-05.pt")
    inception = Inception.load(str(tmp_path), file="inception-2015-12-05.pt", resize="none")
    images = pictures(20)
    found = inception.features(images)
    assert close(found.pool, script(images, return_features=True).detach())
    probabilities = script(images, no_output_bias=True).detach()
    assert torch.allclose(found.logits.softmax(1), probabilities, rtol=1e-5)
    assert not torch.allclose(script(images).detach(), probabilities, rtol=1e-2)  # the bias is not in it
    with pytest.raises(ValueError, match=f"no spatial features; sFID needs torch-fidelity's {FILE}"):
        _ = found.spatial
    assert inception.protocol["network"] == "ScriptedInception"
    torch.jit.script(Colours(1000)).save(tmp_path / "other.pt")
    know(monkeypatch, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"no output.weight \(1008"):
        Inception.load(str(tmp_path / "other.pt"))


@pytest.mark.parametrize("name", ["inception-2015-12-05.pt", FILE, "weights"])
def test_torchscript_is_known_by_its_hash_and_no_other_is_loaded(tmp_path, monkeypatch, name):
    def load_nothing(*arguments, **options):
        raise AssertionError("code of the file was loaded")

    monkeypatch.setattr(torch.jit, "load", load_nothing)
    torch.jit.script(Colours()).save(tmp_path / name)
    with pytest.raises(ValueError, match="is TorchScript, which runs code of its own, and its SHA-256 [0-9a-f]{64} is"):
        Inception.load(str(tmp_path / name))
    assert list(SCRIPTS) == ["f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"]


def test_protocol_has_every_setting_that_changes_features():
    def of(identity="local:1", **settings):
        return fingerprint(Inception(ScriptedInception(torch.jit.script(Colours())), identity, **settings).protocol)

    assert len({of(), of("local:2"), of(rounding="truncate"), of(resize="none"), of(resize="centre_crop")}) == 5
    assert of(resize="none", rounding="truncate") == of(resize="none")  # where nothing is rounded
    with pytest.raises(ValueError, match="expected one of"):
        of(resize="lanczos")
