import pytest
import torch
import torch.nn.functional as F
from tiny_clip import NAME, write_tiny_clip

from asymflow.metrics.aesthetic import HEAD_FILE, Aesthetic, build_head
from asymflow.metrics.weights import MissingWeights


def linear(width, out, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.randn(out, width, generator=generator),
        "bias": torch.randn(out, generator=generator),
    }


def stack(*widths, numbers=(0, 2, 4, 6, 7)):
    return {
        f"layers.{number}.{name}": value
        for number, width, out in zip(numbers, widths, widths[1:], strict=False)
        for name, value in linear(width, out, number).items()
    }


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    write_tiny_clip(folder)
    return {"clip": str(folder), "architecture": str(folder / "config" / f"{NAME}.json")}


def images(count):
    noise = torch.randint(0, 256, (count, 3, 40, 56), generator=torch.Generator().manual_seed(3))
    return noise.to(torch.uint8)


def test_one_layer_by_hand(clip, tmp_path):
    weights = linear(16, 1)
    torch.save(weights, tmp_path / HEAD_FILE)
    metric = Aesthetic.load(str(tmp_path), **clip)
    from PIL import Image

    pil_images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images(3)]
    with torch.no_grad():
        features = metric.clip.model.encode_image(torch.stack([metric.transform(image) for image in pil_images]))
    expected = (F.normalize(features, dim=-1) * weights["weight"]).sum(-1) + weights["bias"]
    found = metric(images(3), ["", "", ""])
    assert torch.allclose(found, expected, atol=1e-5)
    assert len(set(found.tolist())) == 3
    assert metric(images(0), []).shape == (0,)
    assert metric.protocol["layers"] == 1


def test_five_layers_are_one_linear_map(clip, tmp_path):
    weights = stack(16, 12, 8, 6, 4, 1)
    torch.save(weights, tmp_path / "improved.pth")
    metric = Aesthetic.load(str(tmp_path / "improved.pth"), **clip)
    assert metric.protocol["layers"] == 5
    features = torch.randn(2, 16, generator=torch.Generator().manual_seed(1))
    expected = features
    for number in (0, 2, 4, 6, 7):
        expected = expected @ weights[f"layers.{number}.weight"].T + weights[f"layers.{number}.bias"]
    with torch.no_grad():
        assert torch.allclose(metric.head(features), expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("weights", "named"),
    [
        ({}, "the last layer must have one output"),
        (linear(16, 2), "the last layer must have one output"),
        ({"weight": torch.zeros(1, 16)}, "the layer has no matching weight and bias"),
        (stack(16, 12, 1) | {"layers.2.weight": torch.zeros(1, 9)}, "layers.2 takes 9 features, not 12"),
        ({"visual.proj.weight": torch.zeros(1, 16)}, "'visual.proj' is not a layer"),
    ],
)
def test_weights_of_another_model(weights, named, clip, tmp_path):
    with pytest.raises(ValueError, match=named):
        build_head(weights)
    torch.save(weights, tmp_path / HEAD_FILE)
    with pytest.raises(MissingWeights, match=f"does not fit: {named}.*; needed is sa_0_4"):
        Aesthetic.load(str(tmp_path), **clip)


def test_a_head_of_another_clip_and_missing_weights(clip, tmp_path):
    with pytest.raises(MissingWeights, match="no model was named: needed is sa_0_4"):
        Aesthetic.load("", **clip)
    torch.save(linear(768, 1), tmp_path / HEAD_FILE)
    with pytest.raises(MissingWeights, match="the predictor takes 768 features, CLIP gives 16"):
        Aesthetic.load(str(tmp_path), **clip)
    with pytest.raises(MissingWeights, match="needed is open_clip_model.safetensors"):
        Aesthetic.load(str(tmp_path))
