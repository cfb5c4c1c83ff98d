import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny_clip import NAME, write_tiny_clip

from asymflow.metrics.clip_score import ClipScore
from asymflow.metrics.open_clip_model import load_open_clip

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def metric(weights):
    return ClipScore.load(str(weights.parent), architecture=NAME)


def pictures(count=3, height=48, width=64):
    seeded = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=seeded)


def test_the_score_is_the_cosine_of_the_models_own_features(metric):
    images, prompts = pictures(), ["a cat", "a dog on a sofa", "blue"]
    scores = metric(images, prompts)
    model, tokenizer = metric.clip.model, metric.clip.tokenizer
    with torch.no_grad():
        expected = F.cosine_similarity(model.encode_image(metric.pixels(images)), model.encode_text(tokenizer(prompts)))
    torch.testing.assert_close(scores, expected)
    assert scores.dtype == torch.float32
    assert scores.shape == (3,)
    assert scores.abs().max() <= 1


def test_an_image_is_scored_alone(metric):
    images, prompts = pictures(), ["a cat", "a dog on a sofa", "blue"]
    together = metric(images, prompts)
    for i in range(3):
        torch.testing.assert_close(metric(images[i : i + 1], prompts[i : i + 1])[0], together[i], rtol=0, atol=1e-5)
    assert len(set(together.tolist())) == 3


def test_images_are_resized_by_bicubic_and_center_cropped(metric):
    image = pictures(1)[0]
    small = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((42, 32), Image.Resampling.BICUBIC)  # 42.67, cut
    cropped = torch.from_numpy(np.array(small)).permute(2, 0, 1)[:, :, 5:37] / 255
    torch.testing.assert_close(metric.pixels(image[None])[0], (cropped - MEAN) / STD)


def test_an_image_of_one_color_keeps_it(metric):
    color = torch.tensor([10, 128, 250], dtype=torch.uint8).view(1, 3, 1, 1)
    expected = (color[0] / 255 - MEAN) / STD
    torch.testing.assert_close(metric.pixels(color.expand(1, 3, 90, 50))[0], expected.expand(3, 32, 32))


def test_images_of_the_models_size_are_not_resized(metric):
    image = pictures(1, 32, 32)
    torch.testing.assert_close(metric.pixels(image)[0], (image[0] / 255 - MEAN) / STD)


def test_protocol_names_the_model(metric, weights):
    assert metric.protocol["activation"] == "quickgelu"
    assert metric.protocol["model"].startswith("local:")
    same = ClipScore.load(str(weights), architecture=NAME)  # the file itself
    assert same.protocol == metric.protocol
    plain = ClipScore(load_open_clip(str(weights), "CLIP", NAME, quick_gelu=False))
    assert plain.protocol["activation"] == "gelu"
    assert (plain(pictures(), ["x"] * 3) - same(pictures(), ["x"] * 3)).abs().max() > 1e-5


def test_arguments_that_do_not_fit(metric):
    with pytest.raises(ValueError, match="expected uint8"):
        metric(pictures().float(), ["x"] * 3)
    with pytest.raises(ValueError, match="3 images and 2 texts"):
        metric(pictures(), ["x", "y"])
