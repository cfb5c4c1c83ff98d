import pytest
import torch
from PIL import Image
from tiny_pick_score import write_pick_score

from asymflow.metrics.pick_score import PickScore
from asymflow.metrics.weights import MissingWeights

PROMPTS = ["a cat", "two dogs on a red bus", "a cat " * 30]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("pick")
    write_pick_score(root)
    return root


@pytest.fixture(scope="module")
def metric(folder):
    return PickScore.load(str(folder / "model"), processor=str(folder / "processor"))


def images(count, height=40, width=56):
    noise = torch.randint(0, 256, (count, 3, height, width), generator=torch.Generator().manual_seed(3))
    return noise.to(torch.uint8)


def test_scores_are_those_of_clips_own_forward(metric):
    pil_images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images(3)]
    inputs = metric.processor(
        text=PROMPTS, images=pil_images, padding=True, truncation=True, max_length=24, return_tensors="pt"
    )
    with torch.no_grad():
        expected = metric.model(**inputs).logits_per_image.diagonal()
    found = metric(images(3), PROMPTS)
    assert torch.allclose(found, expected, rtol=1e-5)
    assert len(set(found.tolist())) == 3


def test_a_score_does_not_depend_on_the_batch(metric):
    alone = torch.cat([metric(images(3)[i : i + 1], PROMPTS[i : i + 1]) for i in range(3)])
    assert torch.allclose(metric(images(3), PROMPTS), alone, rtol=1e-4)
    assert metric(images(0), []).shape == (0,)


def test_missing_models(folder, tmp_path):
    with pytest.raises(MissingWeights, match="needed is yuvalkirstain/PickScore_v1"):
        PickScore.load("")
    with pytest.raises(MissingWeights, match="no model was named: needed is the tokenizer"):
        PickScore.load(str(folder / "model"))
    with pytest.raises(MissingWeights, match="has no tokenizer.json: needed is the tokenizer"):
        PickScore.load(str(tmp_path), processor=str(tmp_path))


def test_invalid_calls_are_refused(metric):
    with pytest.raises(ValueError, match="2 images need as many prompts; got 1"):
        metric(images(2), ["a"])
    with pytest.raises(ValueError, match="expected uint8"):
        metric(images(1).float(), ["a"])
