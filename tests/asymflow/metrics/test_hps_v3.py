import numpy as np
import pytest
import torch
from captioner_fixture import PICTURES  # asymflow before transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_hps_v3 import TEXT, write_hps_v3

from asymflow.metrics.hps_v3 import FILE, HpsV3, own_name, resized, smart_resize
from asymflow.metrics.weights import MissingWeights


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_hps_v3(tmp_path_factory.mktemp("models") / "hpsv3")


def load(root, **changes):
    options = {"source": str(root), "base": str(root / "base"), "template": str(root / "template.txt"), **changes}
    return HpsV3.load(**options)


@pytest.fixture(scope="module")
def metric(root):
    return load(root)


def pictures(count=3, height=100, width=100):
    seeded = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=seeded)


PROMPTS = ["a cat", "a dog on a red sofa {in} the rain", ""]


def test_the_score_is_the_heads_first_output_at_the_reward_token(metric, root):
    """By transformers' own forward, told the positions, and a head written out."""
    from transformers import Qwen2VLForConditionalGeneration

    images = pictures(1)
    scores = metric(images, PROMPTS[1:2])
    weights = load_file(root / FILE)
    config = type(metric.model.config).from_pretrained(root / "base")
    config.text_config.vocab_size = len(metric.tokenizer)
    whole = Qwen2VLForConditionalGeneration(config).eval()
    whole.load_state_dict({k: v for k, v in weights.items() if not k.startswith("rm_head")}, strict=False)
    pixels = metric.processor(images=[resized(images[0])], do_resize=False, return_tensors="pt")
    filled = TEXT.replace("{text_prompt}", PROMPTS[1])
    chat = f"<|im_start|>user\n<|vision_start|>{'<|image_pad|>' * 256}<|vision_end|>{filled}<|im_end|>\n"
    ids = metric.tokenizer(chat + "<|im_start|>assistant\n", return_tensors="pt").input_ids
    places = torch.arange(ids.shape[1]).expand(3, 1, -1)
    with torch.no_grad():
        hidden = whole.model(input_ids=ids, position_ids=places, **pixels).last_hidden_state
        kinds = (ids == metric.image_id).int()
        rotated = whole.model(input_ids=ids, mm_token_type_ids=kinds, **pixels).last_hidden_state
    assert (ids == metric.reward_id).sum() == 1

    def head(x):
        for layer in (0, 3, 5):
            x = x @ weights[f"rm_head.{layer}.weight"].T + weights[f"rm_head.{layer}.bias"]
            x = x if layer == 5 else x.clamp_min(0)
        return x[:, 0]

    torch.testing.assert_close(scores, head(hidden[ids == metric.reward_id]), rtol=1e-4, atol=1e-5)
    assert (scores - head(rotated[ids == metric.reward_id])).abs() > 1e-4  # M-RoPE is another score


def test_a_picture_is_scored_alone(metric):
    images = pictures()
    together = metric(images, PROMPTS)
    assert together.dtype == torch.float32 and len(set(together.tolist())) == 3
    for i in range(3):
        alone = metric(images[i : i + 1], PROMPTS[i : i + 1])[0]
        torch.testing.assert_close(alone, together[i], rtol=0, atol=1e-5)
    swapped = metric(images[[1, 0, 2]], PROMPTS)
    assert (swapped[:2] - together[:2]).abs().max() > 1e-5  # it looks at the picture


def test_both_layouts_of_the_checkpoint_are_one_model(metric, root):
    old = load(root, source=str(root / "old.safetensors"))
    assert torch.equal(old(pictures(), PROMPTS), metric(pictures(), PROMPTS))
    assert own_name("model.norm.weight") == own_name("model.language_model.norm.weight") == "language_model.norm.weight"
    assert own_name("visual.x") == own_name("model.visual.x") == "visual.x"


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1024, 1024), (448, 448)),
        ((448, 448), (448, 448)),
        ((512, 512), (448, 448)),
        ((64, 64), (448, 448)),  # enlarged
        ((768, 1344), (336, 588)),  # 338.7 x 592.7, both cut
        ((100, 400), (224, 896)),
        ((100, 300), (280, 784)),  # 258.7 x 776.0, both up
    ],
)
def test_sizes(size, expected):
    found = smart_resize(*size)
    assert found == expected and smart_resize(*size[::-1]) == expected[::-1]
    assert all(side % 28 == 0 for side in found)


def test_sizes_by_the_rule_itself():
    import math

    for height in range(30, 2000, 137):
        for width in range(30, 2000, 93):
            h, w = (max(28, round(side / 28) * 28) for side in (height, width))
            beta = math.sqrt(height * width / 200704)
            if h * w > 200704:
                h, w = (max(28, math.floor(side / beta / 28) * 28) for side in (height, width))
            elif h * w < 200704:
                h, w = (math.ceil(side / beta / 28) * 28 for side in (height, width))
            assert smart_resize(height, width) == (h, w)
    with pytest.raises(ValueError, match="too long"):
        smart_resize(10, 3000)


def test_pictures_are_resized_by_pillow_and_normalised(metric):
    image = pictures(1, 120, 80)[0]
    expected = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((392, 560), Image.Resampling.BICUBIC)
    assert np.array_equal(np.array(resized(image)), np.array(expected))
    flat = torch.tensor([10, 128, 250], dtype=torch.uint8).view(3, 1, 1).expand(3, 50, 50)
    values = metric.processor(images=[resized(flat)], do_resize=False, return_tensors="pt")["pixel_values"]
    mean, std = (torch.tensor(PICTURES[f"image_{name}"]) for name in ("mean", "std"))
    colors = (torch.tensor([10, 128, 250]) / 255 - mean) / std
    torch.testing.assert_close(values.view(-1, 3, 2 * 14 * 14), colors.view(1, 3, 1).expand(1024, 3, 392))


def test_prompts_with_the_models_own_tokens_are_refused(metric):
    for prompt in ("a <|Reward|>", "<|image_pad|>"):
        with pytest.raises(ValueError, match="takes for its own"):
            metric(pictures(1), [prompt])
    with pytest.raises(ValueError, match="3 pictures and 1 prompts"):
        metric(pictures(), ["x"])


def test_it_says_what_it_is(metric, root):
    assert metric.protocol["positions"] == "plain" and metric.protocol["precision"] == "float32, head float32"
    (root / "other.txt").write_text(TEXT + "!")
    assert load(root, template=str(root / "other.txt")).protocol != metric.protocol
    (root / "other.txt").unlink()


def test_what_is_missing_or_does_not_fit(root, tmp_path, metric):
    for changes, says in (
        ({"template": ""}, "no template was named: .*{text_prompt} and <.Reward.> in it, which the package hpsv3"),
        ({"template": str(tmp_path / "none")}, "does not exist"),
        ({"template": str(root / "base/config.json")}, "has {text_prompt} 0 times"),
        ({"source": ""}, "needed is HPSv3.safetensors"),
        ({"base": str(tmp_path / "none")}, "configuration and tokenizer of Qwen/Qwen2-VL-7B-Instruct"),
    ):
        with pytest.raises(ValueError, match=says):
            load(root, **changes)
    weights = load_file(root / FILE)
    wanting = {
        "rm_head.0.weight": "has no head",
        "rm_head.3.bias": "another head",
        "model.language_model.norm.weight": "missing or unknown are .*norm.weight",
    }
    for name, says in wanting.items():
        save_file({k: v for k, v in weights.items() if k != name}, tmp_path / FILE)
        with pytest.raises(MissingWeights, match=says):
            load(root, source=str(tmp_path))
    save_file({**weights, "model.language_model.extra": torch.zeros(1)}, tmp_path / FILE)
    with pytest.raises(MissingWeights, match="missing or unknown are .*extra"):
        load(root, source=str(tmp_path))
