import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tiny_clip import NAME, write_tiny_clip
from torchvision.transforms import functional as TF

from asymflow.metrics.hps_v2 import FILE, HpsV2
from asymflow.metrics.weights import MissingWeights

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With a checkpoint as the real one is: a pickle of {'epoch': ..., 'state_dict': ...}."""
    root = tmp_path_factory.mktemp("hps")
    weights = load_file(write_tiny_clip(root, quick_gelu=False))
    torch.save({"epoch": 3, "state_dict": weights}, root / FILE)
    return root


@pytest.fixture(scope="module")
def metric(folder):
    return HpsV2.load(str(folder), architecture=NAME)


def pictures(count=3, height=64, width=64):
    seeded = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=seeded)


def test_the_score_is_the_cosine_of_the_models_own_features(metric):
    images, prompts = pictures(), ["a cat", "a dog on a sofa", "blue"]
    model, tokenizer = metric.clip.model, metric.clip.tokenizer
    with torch.no_grad():
        expected = F.cosine_similarity(model.encode_image(metric.pixels(images)), model.encode_text(tokenizer(prompts)))
    scores = metric(images, prompts)
    torch.testing.assert_close(scores, expected)
    for i in range(3):
        torch.testing.assert_close(metric(images[i : i + 1], prompts[i : i + 1])[0], scores[i], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 40), (30, 77), (16, 16), (2, 200)])
def test_the_longer_side_fits_and_the_rest_is_black(metric, height, width):
    image = pictures(1, height, width)
    scale = 32 / max(height, width)
    small = [max(1, round(height * scale)), round(width * scale)]
    expected = TF.resize(image[0] / 255, small, TF.InterpolationMode.BICUBIC, antialias=True)
    above, left = (32 - small[0]) // 2, (32 - small[1]) // 2
    found = metric.pixels(image)[0] * STD + MEAN
    torch.testing.assert_close(found[:, above : above + small[0], left : left + small[1]], expected)
    outside = torch.ones(32, 32, dtype=torch.bool)
    outside[above : above + small[0], left : left + small[1]] = False
    assert found[:, outside].numel() == 3 * (32 * 32 - small[0] * small[1])
    torch.testing.assert_close(found[:, outside], torch.zeros_like(found[:, outside]), rtol=0, atol=1e-6)


def test_an_image_of_one_color_keeps_it(metric):
    color = torch.tensor([10, 128, 250], dtype=torch.uint8).view(1, 3, 1, 1)
    expected = (color[0] / 255 - MEAN) / STD
    torch.testing.assert_close(metric.pixels(color.expand(1, 3, 100, 100))[0], expected.expand(3, 32, 32))


def test_activations_are_two_metrics(folder, metric):
    plain = HpsV2.load(str(folder), architecture=NAME, activation="gelu")
    assert (metric.protocol["activation"], plain.protocol["activation"]) == ("quickgelu", "gelu")
    assert metric.protocol | {"activation": "gelu"} == plain.protocol
    assert (plain(pictures(), ["x"] * 3) - metric(pictures(), ["x"] * 3)).abs().max() > 1e-5
    with pytest.raises(ValueError, match="activation is 'relu'"):
        HpsV2.load(str(folder), architecture=NAME, activation="relu")


def test_without_its_checkpoint(tmp_path):
    with pytest.raises(MissingWeights, match="has no HPS_v2.1_compressed.pt: needed is .*xswu/HPSv2"):
        HpsV2.load(str(tmp_path), architecture=NAME)


def test_resizing_without_antialiasing_is_another_metric(folder, metric):
    rough = HpsV2.load(str(folder), architecture=NAME, antialias=False)
    image = pictures(1, 64, 64)
    expected = TF.resize(image[0] / 255, [32, 32], TF.InterpolationMode.BICUBIC, antialias=False)
    torch.testing.assert_close(rough.pixels(image)[0] * STD + MEAN, expected)
    assert rough.protocol == metric.protocol | {"antialias": False}
