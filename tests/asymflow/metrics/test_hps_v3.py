import copy
import json

import pytest
import torch
from captioner_fixture import PICTURES, SPECIAL, new_tokenizer  # asymflow before transformers
from safetensors.torch import save_file

from asymflow.metrics.hps_v3 import FILE, PIXELS, HpsV3, new_head, read_template, target_size
from asymflow.metrics.weights import MissingWeights

TEMPLATE = "Rate: {text_prompt}\nThe rating <|Reward|> ends\n"
PROMPTS = ("a fox", "a red fox in the snow, at night", "{x} 100%")


def tiny_config():
    from transformers import Qwen2VLConfig

    tokenizer = new_tokenizer()
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in SPECIAL}
    return Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 2048,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
        },
        vision_config={"depth": 1, "embed_dim": 32, "num_heads": 2, "hidden_size": 32, "mlp_ratio": 2},
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """What `load` takes of Qwen2-VL-7B-Instruct: the configuration and the processor, no weights."""
    folder = tmp_path_factory.mktemp("base")
    config = tiny_config().to_dict()
    text = config.pop("text_config")  # published as flat as transformers 4.45 wrote it
    rope = {"rope_theta": 1e4, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}
    del text["rope_parameters"]
    (folder / "config.json").write_text(json.dumps({**text, **config, **rope, "model_type": "qwen2_vl"}))
    new_tokenizer().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({**PICTURES, "processor_class": "Qwen2VLProcessor"}))
    return folder


@pytest.fixture(scope="module")
def parts(base):
    """(model with a row for the special token, head); loud enough weights that scores differ by more than rounding."""
    from transformers import Qwen2VLModel

    torch.manual_seed(0)
    config = tiny_config()
    config.text_config.vocab_size += 1
    model, head = Qwen2VLModel(config).eval(), new_head(32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(12 if parameter.ndim > 1 else 1)
        for parameter in head.parameters():
            parameter.mul_(2)
    return model, head


def processor(base):
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(base)


@pytest.fixture(scope="module")
def scorer(base, parts):
    return HpsV3(copy.deepcopy(parts[0]), parts[1], processor(base), TEMPLATE, "tiny")


def pictures(count, height=64, width=64, seed=0):
    return torch.randint(0, 256, (count, 3, height, width), generator=torch.Generator().manual_seed(seed)).byte()


def checkpoint(parts, newer=False):
    """The names of transformers 4.45, as MizzenAI/HPSv3 has them, or of 4.52."""
    model, head = parts
    weights = {f"rm_head.{name}": value for name, value in head.state_dict().items()}
    weights["lm_head.weight"] = torch.zeros(model.get_input_embeddings().weight.shape)
    for name, value in model.state_dict().items():
        old = name.replace("language_model.", "model.")
        weights[f"model.{name}" if newer else old] = value.clone()
    return weights


@pytest.mark.parametrize(
    ("size", "target"),
    [
        ((1024, 1024), (448, 448)),
        ((448, 448), (448, 448)),
        ((100, 100), (448, 448)),
        ((512, 2048), (224, 896)),  # 1 : 4 fits exactly
        ((1024, 768), (504, 364)),  # 517 by 387 before rounding down
        ((60, 45), (532, 392)),  # the same shape from below is rounded up
        ((10, 2000), (56, 6356)),  # 31.7 by 6336 rounded up
    ],
)
def test_sides_are_multiples_of_28_near_the_pixels(size, target):
    assert target_size(*size) == target
    assert target_size(*size[::-1]) == target[::-1]


def test_sides_follow_the_rule_of_the_reference():
    """The rule of hpsv3's `smart_resize`, written out for equal bounds."""
    for height in range(28, 2000, 171):
        for width in range(28, 2000, 97):
            nearest = round(height / 28) * 28 * round(width / 28) * 28
            ratio = (PIXELS / (height * width)) ** 0.5
            sides = [side * ratio / 28 for side in (height, width)]
            if nearest == PIXELS:
                expected = round(height / 28) * 28, round(width / 28) * 28
            else:
                expected = tuple(28 * (int(side) if nearest > PIXELS else -int(-side // 1)) for side in sides)
            assert target_size(height, width) == expected
    with pytest.raises(ValueError, match="200"):
        target_size(10, 2001)


def test_an_image_of_one_color_stays_one(scorer):
    image = torch.tensor([10, 128, 255], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 1024, 1024)
    inputs = scorer.inputs(image, ["a fox"])
    assert inputs["image_grid_thw"].tolist() == [[1, 32, 32]]
    patches = inputs["pixel_values"].view(1024, 3, 2 * 14 * 14)
    mean, std = torch.tensor(PICTURES["image_mean"]), torch.tensor(PICTURES["image_std"])
    expected = (torch.tensor([10, 128, 255]) / 255 - mean) / std
    torch.testing.assert_close(patches, expected.view(1, 3, 1).expand_as(patches), atol=1e-5, rtol=0)


def test_patches_come_in_squares_of_four_and_a_gradient_stays_one(scorer):
    """448 pixels are not resized; of 896, each pixel is between the two it was made from."""
    ramp = torch.arange(448).div(2, rounding_mode="floor").byte()
    image = ramp.view(1, 1, 1, -1).expand(1, 3, 448, 448)
    mean, std = PICTURES["image_mean"][0], PICTURES["image_std"][0]
    for resized in (image, image.repeat_interleave(2, -1).repeat_interleave(2, -2)):
        patches = scorer.inputs(resized, ["a fox"])["pixel_values"].view(16, 16, 2, 2, 3, 2, 14, 14)
        grid = patches.permute(4, 5, 0, 2, 6, 1, 3, 7).reshape(3, 2, 448, 448)
        levels = (grid[0] * std + mean) * 255
        slack = 1e-3 if resized is image else 1.001
        torch.testing.assert_close(levels, ramp.float().expand_as(levels), atol=slack, rtol=0)


def test_images_are_resized_bicubically(scorer):
    """Which overshoots at an edge, by 7% of it where a picture is doubled, as bilinear and box filters never do."""
    image = torch.full((1, 3, 224, 224), 50).byte()
    image[..., 112:] = 150
    values = scorer.inputs(image, ["a fox"])["pixel_values"].view(1024, 3, -1)[:, 0]
    levels = (values * PICTURES["image_std"][0] + PICTURES["image_mean"][0]) * 255
    assert abs(levels.min() - 43) < 1.1
    assert abs(levels.max() - 157) < 1.1


def test_the_text_is_the_template_in_the_chat_format(scorer):
    inputs = scorer.inputs(pictures(1), [PROMPTS[2]])
    text = scorer.processor.tokenizer.decode(inputs["input_ids"][0])
    assert text == (
        "<|im_start|>user\n<|vision_start|>" + "<|image_pad|>" * 256 + "<|vision_end|>"
        "Rate: {x} 100%\nThe rating <|Reward|> ends\n<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_score_is_the_heads_first_output_at_the_token_with_plain_positions(scorer):
    images = pictures(3)
    scores, others = scorer(images, PROMPTS), []
    assert scores.dtype == torch.float32
    assert scores.shape == (3,)
    assert scores.std() > 1e-2
    for image, prompt, score in zip(images, PROMPTS, scores, strict=True):
        inputs = scorer.inputs(image[None], [prompt])
        length = inputs["input_ids"].shape[1]
        place = inputs["input_ids"][0].tolist().index(scorer.token)
        for positions in (torch.arange(length).expand(3, 1, length), None):  # None: M-RoPE
            with torch.no_grad():
                hidden = scorer.model(**inputs, position_ids=positions).last_hidden_state[0, place]
                layers = [layer for layer in scorer.head if isinstance(layer, torch.nn.Linear)]
                value = layers[2](layers[1](layers[0](hidden).relu()).relu())[0]
            if positions is None:
                others.append(abs(value - score))
            else:
                torch.testing.assert_close(value, score, atol=1e-5, rtol=0)
    assert max(others) > 1e-3


def test_a_score_does_not_depend_on_the_batch(scorer):
    images = pictures(9)
    prompts = [PROMPTS[i % 3] for i in range(9)]
    together = scorer(images, prompts)
    alone = torch.cat([scorer(images[i : i + 1], prompts[i : i + 1]) for i in range(9)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(scorer(images.flip(0), prompts[::-1]), together.flip(0), atol=1e-5, rtol=0)
    assert scorer(images[:0], []).shape == (0,)


def test_score_depends_on_the_text_before_the_token_alone(scorer, base, parts):
    def score(template):
        model = copy.deepcopy(parts[0])
        return HpsV3(model, parts[1], processor(base), template, "tiny")(pictures(1), ["a fox"])

    scores = score(TEMPLATE), score(TEMPLATE + "and goes on"), score("Please " + TEMPLATE)
    torch.testing.assert_close(scores[0], scorer(pictures(1), ["a fox"]), atol=1e-5, rtol=0)
    torch.testing.assert_close(scores[0], scores[1], atol=1e-5, rtol=0)
    assert abs(scores[2] - scores[0]) > 1e-3


def test_frequencies_are_rounded_as_the_reference_does(scorer, base, parts):
    exact = HpsV3(copy.deepcopy(parts[0]), parts[1], processor(base), TEMPLATE, "tiny", round_frequencies=False)
    inverse = 1e4 ** (-torch.arange(8) / 8)
    torch.testing.assert_close(exact.model.language_model.rotary_emb.inv_freq, inverse)
    for rotary in (scorer.model.language_model.rotary_emb, scorer.model.visual.rotary_pos_emb):
        bits = rotary.inv_freq.view(torch.int32)
        assert rotary.inv_freq.dtype == torch.float32
        assert not (bits & 0xFFFF).any()
        torch.testing.assert_close(rotary.inv_freq, rotary.original_inv_freq, rtol=2**-8, atol=0)
        assert not rotary.inv_freq.equal(rotary.original_inv_freq)
    assert (exact(pictures(1), ["a fox"]) - scorer(pictures(1), ["a fox"])).abs() > 1e-4
    assert exact.protocol["frequencies"] == "float32"
    assert scorer.protocol["frequencies"] == "bfloat16"


@pytest.mark.parametrize("newer", [False, True])
def test_a_checkpoint_is_loaded_by_its_older_names(tmp_path, base, parts, scorer, newer):
    save_file(checkpoint(parts, newer), tmp_path / FILE)
    (tmp_path / "template.txt").write_text(TEMPLATE)
    loaded = HpsV3.load(str(tmp_path), base=str(base), template=tmp_path / "template.txt")
    torch.testing.assert_close(loaded(pictures(3), PROMPTS), scorer(pictures(3), PROMPTS), atol=1e-6, rtol=0)
    assert loaded.protocol | {"model": "tiny"} == scorer.protocol
    assert loaded.protocol["model"].count("local:") == 2
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda w: w.pop("model.layers.1.mlp.up_proj.weight"), "1 missing_keys, language_model.layers.1.mlp.up_proj"),
        (lambda w: w.pop("rm_head.5.bias"), r'Missing key\(s\) in state_dict: "5.bias"'),
        (lambda w: w.update({"model.extra": torch.zeros(1)}), "1 unexpected_keys, .*extra"),
        (lambda w: w.update({"visual.extra": torch.zeros(1)}), "1 unexpected_keys, visual.extra"),
        (lambda w: w.update({"model.norm.weight": torch.zeros(1)}), "1 mismatched_keys, .*language_model.norm.weight"),
        (lambda w: w.update({"model.embed_tokens.weight": torch.zeros(9, 32)}), "the model has 9 tokens"),
    ],
)
def test_a_checkpoint_that_does_not_fit(tmp_path, base, parts, change, says):
    weights = checkpoint(parts)
    change(weights)
    save_file(weights, tmp_path / FILE)
    (tmp_path / "template.txt").write_text(TEMPLATE)
    with pytest.raises(ValueError, match=says):
        HpsV3.load(str(tmp_path / FILE), base=str(base), template=tmp_path / "template.txt")


def test_missing_files_are_named(tmp_path, base):
    good = tmp_path / "good.txt"
    good.write_text(TEMPLATE)
    with pytest.raises(ValueError, match=r"no template ''; .* \{text_prompt\} and <\|Reward\|> once each: .* hpsv3"):
        HpsV3.load(str(tmp_path), base=str(base))
    with pytest.raises(MissingWeights, match=f"has no {FILE}: needed is {FILE} of MizzenAI/HPSv3"):
        HpsV3.load(str(tmp_path), base=str(base), template=good)
    save_file({"model.norm.weight": torch.ones(32)}, tmp_path / FILE)
    with pytest.raises(MissingWeights, match="no model was named: needed is the configuration and processor of Qwen"):
        HpsV3.load(str(tmp_path), template=good)
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingWeights, match="needed is the configuration and processor of Qwen"):
        HpsV3.load(str(tmp_path), base=str(tmp_path / "empty"), template=good)
    for text in ("{text_prompt}", "<|Reward|>", TEMPLATE + "{text_prompt}"):
        (tmp_path / "bad.txt").write_text(text)
        with pytest.raises(ValueError, match="exactly once; needed is a text file"):
            read_template(tmp_path / "bad.txt", ("{text_prompt}", "<|Reward|>"), "somewhere")


@pytest.mark.parametrize(
    ("images", "prompts", "says"),
    [
        (pictures(2), ["a fox"], "2 images need as many prompts; got 1"),
        (pictures(2).float(), ["a fox"] * 2, "expected uint8"),
        (pictures(2)[:, :1], ["a fox"] * 2, "expected uint8"),
        (pictures(2)[0], ["a fox"] * 3, "expected uint8"),
        (pictures(1), ["a <|Reward|>"], "special token"),
        (pictures(1), ["a <|image_pad|>"], "special token"),
        (pictures(1, 4, 900), ["a fox"], "200"),
    ],
)
def test_invalid_calls_are_refused(scorer, images, prompts, says):
    with pytest.raises(ValueError, match=says):
        scorer(images, prompts)


def test_protocol_has_every_setting_that_changes_scores(scorer, base, parts):
    assert json.loads(json.dumps(scorer.protocol)) == scorer.protocol
    other = HpsV3(copy.deepcopy(parts[0]), parts[1], processor(base), TEMPLATE + " ", "tiny")
    assert other.protocol["template"] != scorer.protocol["template"]
    chat = processor(base)
    chat.chat_template = "{% for m in messages %}<|image_pad|>{{ m['content'][1]['text'] }}{% endfor %}"
    other = HpsV3(copy.deepcopy(parts[0]), parts[1], chat, TEMPLATE, "tiny")
    assert other.protocol["chat_template"] != scorer.protocol["chat_template"]
