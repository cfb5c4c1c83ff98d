import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from pipelines.core.config import ConfigError
from pipelines.sample.config import Safety
from pipelines.sample.safety import SafetyFilter, check_safety

PICTURES = [Image.new("RGB", (64, 48), color) for color in ("white", "red", "blue")]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """Return a tiny model of the real class that flags red images."""
    folder = tmp_path_factory.mktemp("classifier")
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16, image_size=32, patch_size=16,
        id2label={0: "normal", 1: "nsfw"}, label2id={"normal": 0, "nsfw": 1},
    )  # fmt: skip
    torch.manual_seed(0)
    model = ViTForImageClassification(config).eval()
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    processor = ViTImageProcessor.from_pretrained(folder)
    with torch.no_grad():  # the head: the direction that separates red from other colors
        pixels = processor(images=PICTURES, return_tensors="pt")["pixel_values"]
        features = model.vit(pixels).last_hidden_state[:, 0]
        direction = features[1] - (features[0] + features[2]) / 2
        middle = (features @ direction).sort().values
        model.classifier.weight.copy_(torch.stack([-direction, direction]) * 100)
        bias = -100 * (middle[-1] + middle[-2]) / 2
        model.classifier.bias.copy_(torch.stack([-bias, bias]))
    model.save_pretrained(folder)
    return str(folder)


def test_flagged_images_are_black(classifier):
    pictures, flagged = SafetyFilter(Safety(classifier=classifier), "cpu")(PICTURES)
    assert flagged == [False, True, False]
    assert [picture.getpixel((5, 5)) for picture in pictures] == [(255, 255, 255), (0, 0, 0), (0, 0, 255)]
    assert pictures[1].size == (64, 48)


def test_threshold_and_label_are_settings(classifier):
    assert SafetyFilter(Safety(classifier=classifier, threshold=0.0), "cpu")(PICTURES)[1] == [True] * 3
    other = SafetyFilter(Safety(classifier=classifier, label="normal"), "cpu")(PICTURES)[1]
    assert other == [True, False, True]


def test_without_a_classifier_nothing_is_flagged():
    assert SafetyFilter(Safety(), "cpu")(PICTURES) == (PICTURES, [False] * 3)


def test_bad_classifiers_are_named_before_anything_starts(classifier, tmp_path):
    with pytest.raises(ConfigError, match="safety.classifier=.*not a folder of a transformers image classifier"):
        check_safety(Safety(classifier=str(tmp_path)))
    with pytest.raises(ConfigError, match="safety.label='violence': the classifier has normal, nsfw"):
        check_safety(Safety(classifier=classifier, label="violence"))
