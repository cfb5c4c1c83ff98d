import json

import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageColor

from asymflow.metrics.colors import COLORS, ColorClassifier, isolate_object
from asymflow.metrics.weights import MissingWeights

TINY = {
    "embed_dim": 16, "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}  # fmt: skip
BOX = (4.0, 2.0, 14.0, 8.0, 0.9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    import open_clip
    from safetensors.torch import save_file

    root = tmp_path_factory.mktemp("clip")
    (root / "asymflow-tiny-clip.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(root / "asymflow-tiny-clip.json")
    (root / "model").mkdir()
    torch.manual_seed(0)
    model = open_clip.create_model("asymflow-tiny-clip", pretrained=None)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()},
              root / "model" / "open_clip_model.safetensors")  # fmt: skip
    return str(root / "model")


@pytest.fixture(scope="module")
def classifier(folder):
    return ColorClassifier.load(folder, architecture="asymflow-tiny-clip")


class Plain(torch.nn.Module):
    """A CLIP without weights: a picture is the one-hot of the nearest colour of its mean, a sentence that of the colour
    in it; `texts` are what its tokenizer was asked for."""

    def __init__(self):
        super().__init__()
        self.visual = torch.nn.Linear(1, 1)
        self.visual.image_size = 16
        self.texts = []
        self.palette = torch.tensor([ImageColor.getrgb(color) for color in COLORS]) / 255

    def tokenize(self, texts):
        self.texts.append(texts)
        return torch.tensor(
            [[[color in text.replace("-", " ").split() for color in COLORS].index(True)] for text in texts]
        )

    def encode_text(self, tokens):
        return 3.0 * F.one_hot(tokens[:, 0], len(COLORS)).float()

    def encode_image(self, pixels):
        mean, std = (
            torch.tensor([0.48145466, 0.4578275, 0.40821073]),
            torch.tensor([0.26862954, 0.26130258, 0.27577711]),
        )
        colors = pixels.mean((2, 3)) * std + mean
        return 7.0 * F.one_hot(torch.cdist(colors, self.palette).argmin(1), len(COLORS)).float()


def painted(color, background="green"):
    """A picture with a rectangle of one colour at BOX, and its mask."""
    image = Image.new("RGB", (20, 12), background)
    image.paste(color, tuple(int(side) for side in BOX[:4]))
    mask = torch.zeros(12, 20, dtype=torch.bool)
    mask[2:8, 4:14] = True
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(12, 20, 3).permute(2, 0, 1), mask


@pytest.mark.parametrize("color", COLORS)
def test_the_color_in_the_box_is_named(color):
    plain = Plain()
    assert ColorClassifier(plain, plain.tokenize, "plain")(*painted(color), BOX, "cup") == color


def test_pixels_outside_the_mask_become_gray():
    image, mask = painted("red", background="blue")
    mask[2:8, 9:14] = False
    alone = isolate_object(image, mask, BOX)
    assert alone.size == (10, 6)
    assert [alone.getpixel(at) for at in ((0, 0), (4, 5), (5, 0), (9, 5))] == [(255, 0, 0)] * 2 + [(153, 153, 153)] * 2


def test_a_class_is_read_once_in_three_sentences_a_color():
    plain = Plain()
    classifier = ColorClassifier(plain, plain.tokenize, "plain")
    for name in ("cup", "cup", "tv remote", "cup"):
        classifier(*painted("red"), BOX, name)
    assert len(plain.texts) == 2
    assert [len(texts) for texts in plain.texts] == [30, 30]
    assert plain.texts[1][3:6] == [
        "a photo of a orange tv remote", "a photo of a orange-colored tv remote", "a photo of a orange object",
    ]  # fmt: skip


def test_sentences_are_normalized_averaged_and_normalized(classifier):
    import open_clip

    tokens = open_clip.get_tokenizer("ViT-L-14")(
        ["a photo of a blue dog", "a photo of a blue-colored dog", "a photo of a blue object"]
    )
    with torch.no_grad():
        one = classifier.model.encode_text(tokens)
    mean = sum(sentence / sentence.norm() for sentence in one) / 3
    torch.testing.assert_close(classifier._of_class("dog")[4], mean / mean.norm())
    assert (classifier._of_class("dog")[4] - one.mean(0) / one.mean(0).norm()).abs().max() > 1e-6


def test_the_real_classes_name_the_likeliest(classifier):
    image = torch.randint(0, 256, (3, 12, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(12, 20, dtype=torch.bool)
    picture = Image.fromarray(image[:, 2:8, 4:14].permute(1, 2, 0).contiguous().numpy())
    resized = picture.resize((53, 32), Image.Resampling.BICUBIC).crop((10, 0, 42, 32))
    pixels = torch.frombuffer(bytearray(resized.tobytes()), dtype=torch.uint8).view(32, 32, 3).permute(2, 0, 1) / 255
    mean, std = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    expected = (pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    torch.testing.assert_close(classifier.transform(isolate_object(image, mask, BOX)), expected, atol=1e-5, rtol=0)
    with torch.no_grad():
        scores = classifier._of_class("dog") @ classifier.model.encode_image(expected[None])[0]
    assert classifier(image, mask, BOX, "dog") == COLORS[int(scores.argmax())]


def test_protocol_names_the_model(classifier, folder):
    protocol = classifier.protocol
    assert json.loads(json.dumps(protocol)) == protocol
    assert protocol["model"].startswith("asymflow-tiny-clip local:")
    assert protocol["background"] == "#999999"
    assert ColorClassifier.load(folder, architecture="asymflow-tiny-clip").protocol == protocol


@pytest.mark.parametrize(
    ("image", "mask", "box", "named"),
    [
        (torch.zeros(3, 12, 20), torch.ones(12, 20, dtype=torch.bool), BOX, "expected uint8"),
        (torch.zeros(12, 20, dtype=torch.uint8), torch.ones(12, 20, dtype=torch.bool), BOX, "expected uint8"),
        (painted("red")[0], torch.ones(12, 20), BOX, "expected bool"),
        (painted("red")[0], torch.ones(20, 12, dtype=torch.bool), BOX, "expected bool .12, 20"),
        (*painted("red"), (4.0, 2.0, 4.0, 8.0, 0.9), "not inside the image of 20x12"),
        (*painted("red"), (4.0, 2.0, 24.0, 8.0, 0.9), "not inside"),
        (*painted("red"), (-1.0, 2.0, 14.0, 8.0, 0.9), "not inside"),
    ],
)
def test_invalid_arguments_are_named(image, mask, box, named):
    with pytest.raises(ValueError, match=named):
        isolate_object(image, mask, box)


def test_weights_that_are_missing_or_others(folder, tmp_path):
    with pytest.raises(MissingWeights, match="needed is ViT-L-14-quickgelu"):
        ColorClassifier.load("")
    with pytest.raises(MissingWeights, match="has no open_clip_model.safetensors"):
        ColorClassifier.load(str(tmp_path))
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(MissingWeights, match="cannot be read as weights"):
        ColorClassifier.load(str(tmp_path), architecture="asymflow-tiny-clip")
    from safetensors.torch import save_file

    save_file({"visual.proj": torch.zeros(2, 2)}, tmp_path / "open_clip_model.safetensors")
    with pytest.raises(MissingWeights, match="does not contain asymflow-tiny-clip"):
        ColorClassifier.load(str(tmp_path), architecture="asymflow-tiny-clip")
