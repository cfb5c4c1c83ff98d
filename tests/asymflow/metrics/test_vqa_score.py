import json
import re

import pytest
import torch

from asymflow.metrics.vqa_score import MEAN, QUESTION, STD, VqaScore, new_projector, preprocess  # before transformers
from asymflow.metrics.weights import MissingWeights

TEMPLATE = "A chat: <image>\n{question} Say: "
PROMPTS = ("a fox", "two red dogs, a cat", 'the word "yes"')
WORDS = 'abcdefghijklmnopqrstuvwxyzADPS"?.,:'


def t5_tokenizer():
    from transformers import T5Tokenizer

    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    letters = [(letter, -3.0) for letter in WORDS]
    return T5Tokenizer(vocab=[*special, ("▁", -2.0), ("▁Yes", -1.0), *letters], extra_ids=0)


def t5_config(rows):
    return {
        "vocab_size": rows, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2,
        "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "decoder_start_token_id": 0,
    }  # fmt: skip


def new_parts(spare=0):
    """(T5, vision tower, projector) with weights of which scores depend on both picture and prompt."""
    from transformers import CLIPVisionConfig, CLIPVisionModel, T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    language = T5ForConditionalGeneration(T5Config(**t5_config(len(t5_tokenizer()) + spare)))
    language.lm_head.weight = torch.nn.Parameter(torch.randn(language.lm_head.weight.shape))  # not tied, as Flan's
    tower = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=24,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=28,
            patch_size=14,
            initializer_range=0.5,
        )  # fmt: skip
    )
    projector = new_projector(24, 16)
    with torch.no_grad():
        language.shared.weight.normal_()
        for parameter in (*tower.parameters(), *projector.parameters()):
            parameter.mul_(5 if parameter.ndim > 1 else 1)
        for name, parameter in language.named_parameters():
            parameter.mul_(3 if "Attention.o" in name or "wo" in name else 1)
    return language.eval(), tower.eval(), projector.eval()


def new_scorer(parts, template=TEMPLATE):
    return VqaScore(*parts, t5_tokenizer(), template, "tiny")


@pytest.fixture(scope="module")
def parts():
    return new_parts()


@pytest.fixture(scope="module")
def scorer(parts):
    return new_scorer(parts)


def pictures(count, height=40, width=40, seed=0):
    """Smooth ones: four colours each."""
    corners = torch.randint(0, 256, (count, 3, 2, 2), generator=torch.Generator().manual_seed(seed)).float()
    return torch.nn.functional.interpolate(corners, (height, width), mode="nearest").byte()


def levels(values):
    """Back to 0 .. 255."""
    return (values * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)) * 255


def test_normalization_constants_are_clips():
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    assert tuple(OPENAI_CLIP_MEAN) == MEAN
    assert tuple(OPENAI_CLIP_STD) == STD


@pytest.mark.parametrize(
    ("size", "inside"),
    [
        ((28, 14), (slice(0, 28), slice(7, 21))),
        ((14, 28), (slice(7, 21), slice(0, 28))),
        ((25, 28), (slice(1, 26), slice(0, 28))),  # of 3 rows of margin, 1 above and 2 below
    ],
)
def test_an_image_is_padded_with_the_mean_color_on_both_sides(size, inside):
    image = torch.randint(0, 256, (3, *size), generator=torch.Generator().manual_seed(0)).byte()
    expected = torch.tensor([122, 116, 104]).view(3, 1, 1).repeat(1, 28, 28)
    expected[:, *inside] = image.long()
    torch.testing.assert_close(levels(preprocess(image, 28)), expected.float(), atol=1e-3, rtol=0)


def test_an_image_is_resized_whole_and_bicubically():
    constant = torch.tensor([3, 100, 255]).view(3, 1, 1).expand(3, 90, 90).byte()
    expected = torch.tensor([3.0, 100, 255]).view(3, 1, 1).expand(3, 28, 28)
    torch.testing.assert_close(levels(preprocess(constant, 28)), expected, atol=1e-3, rtol=0)
    ramp = torch.arange(224).view(1, 1, -1).expand(3, 224, 224).byte()
    middle = (torch.arange(28) * 8 + 3.5).expand(3, 28, 28)  # of the eight columns that each was made from
    found = levels(preprocess(ramp, 28))
    torch.testing.assert_close(found[..., 2:-2], middle[..., 2:-2], atol=0.501, rtol=0)
    assert not preprocess(ramp, 28).requires_grad
    assert preprocess(ramp, 28).dtype == torch.float32


def test_preprocessing_is_that_of_clips_image_processor():
    """After the padding, which is not CLIP's: its own PIL version of the reference's class."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    image = torch.randint(0, 256, (3, 50, 50), generator=torch.Generator().manual_seed(0)).byte()
    expected = processor(images=[image.permute(1, 2, 0).numpy()], return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(preprocess(image, 28), expected, atol=1e-5, rtol=0)


def test_the_projector_has_an_exact_gelu_between_two_layers():
    projector = new_projector(1, 1)
    assert [name for name, _ in projector.named_parameters()] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    with torch.no_grad():
        for parameter, value in zip(projector.parameters(), (2.0, -1.0, 3.0, 0.5), strict=True):
            parameter.fill_(value)
        found = projector(torch.tensor([[1.0]]))
    gaussian = torch.distributions.Normal(0.0, 1.0).cdf(torch.tensor(1.0))
    torch.testing.assert_close(found[0, 0], 3 * gaussian + 0.5, atol=1e-6, rtol=0)


def test_uniform_odds_give_one_over_the_vocabulary():
    language, tower, projector = new_parts(spare=5)
    with torch.no_grad():
        for parameter in language.parameters():
            parameter.zero_()
    scorer = new_scorer((language, tower, projector))
    vocabulary = len(t5_tokenizer())
    assert scorer.protocol["vocabulary"] == vocabulary == len(WORDS) + 5
    torch.testing.assert_close(scorer(pictures(2), PROMPTS[:2]), torch.full((2,), 1 / vocabulary), rtol=1e-6, atol=0)


def test_odds_that_are_known_give_the_geometric_mean_of_both_tokens():
    """The decoder puts out (1, 0, 0, …) wherever it stands: row i of the output gives the logits."""
    language, tower, projector = new_parts()
    scorer = new_scorer((language, tower, projector))
    with torch.no_grad():
        for parameter in language.decoder.parameters():
            parameter.zero_()
        language.shared.weight.copy_(torch.eye(language.config.vocab_size, 16)[0].expand_as(language.shared.weight))
        language.decoder.final_layer_norm.weight.fill_(1 / 4)  # of a vector with a mean square of 1/16
        language.lm_head.weight.zero_()
        yes, end = 4, 1
        language.lm_head.weight[yes, 0], language.lm_head.weight[end, 0] = 3.0, 1.0
    assert scorer.answer.tolist() == [yes, end]
    total = torch.tensor([3.0, 1.0] + [0.0] * (language.config.vocab_size - 2)).exp().sum()
    expected = (torch.tensor(3.0).exp() / total * torch.tensor(1.0).exp() / total).sqrt()
    torch.testing.assert_close(scorer(pictures(1), ["a fox"])[0], expected, rtol=1e-4, atol=0)


def by_hand(parts, image, prompt, mask_unknown=False):
    """One picture: vision tower layer by layer, words and patches in a row, and T5's own loss."""
    language, tower, projector = parts
    tokenizer = t5_tokenizer()
    with torch.no_grad():
        hidden = tower.pre_layrnorm(tower.embeddings(preprocess(image, 28)[None]))
        for layer in tower.encoder.layers[:-1]:
            hidden = layer(hidden, attention_mask=None)
        first, _, second = projector
        patches = second(torch.nn.functional.gelu(first(hidden[0, 1:])))
        assert patches.shape == (4, 16)
        before = tokenizer("A chat:")["input_ids"]
        behind = tokenizer(f'Does this figure show "{prompt}"? Please answer yes or no. Say:')["input_ids"]
        assert before[-1] == behind[-1] == tokenizer.eos_token_id
        words = language.shared.weight
        row = torch.cat([words[before], patches, words[behind]])[None]
        mask = torch.tensor([token != 2 or not mask_unknown for token in before + [3] * 4 + behind])[None].long()
        labels = torch.tensor([[4, 1]])
        return (-language(inputs_embeds=row, attention_mask=mask, labels=labels).loss).exp()


def test_the_score_is_t5s_loss_on_the_answer_and_its_end(scorer, parts):
    images = pictures(3, 40, 30)
    scores = scorer(images, PROMPTS)
    expected = torch.stack([by_hand(parts, image, prompt) for image, prompt in zip(images, PROMPTS, strict=True)])
    torch.testing.assert_close(scores, expected, atol=1e-6, rtol=1e-5)
    assert scores.dtype == torch.float32
    assert (scores > 0).all()
    assert (scores < 1).all()
    other_prompts, other_pictures = scorer(images, PROMPTS[::-1]), scorer(images.flip(0), PROMPTS)
    for others in (other_prompts, other_pictures):
        assert ((others - scores).abs()[[0, 2]] / scores[[0, 2]]).min() > 1e-3


def test_unknown_tokens_are_read_like_others(scorer, parts):
    image, prompt = pictures(1), "a {fox} of 5"
    score = scorer(image, [prompt])[0]
    torch.testing.assert_close(score, by_hand(parts, image[0], prompt), atol=1e-6, rtol=1e-5)
    assert abs(score / by_hand(parts, image[0], prompt, mask_unknown=True) - 1) > 1e-4


def test_rows_beyond_the_tokenizers_do_not_count(scorer):
    language, tower, projector = new_parts(spare=9)
    same = new_parts()[0]
    with torch.no_grad():
        for (name, wide), narrow in zip(language.named_parameters(), same.parameters(), strict=True):
            if wide.shape == narrow.shape:
                wide.copy_(narrow)
            else:
                wide.fill_(100.0)[: len(narrow)] = narrow
                assert name in ("shared.weight", "lm_head.weight")
    wider = new_scorer((language, *new_parts()[1:]))
    torch.testing.assert_close(wider(pictures(2), PROMPTS[:2]), scorer(pictures(2), PROMPTS[:2]), atol=1e-6, rtol=1e-5)


def test_a_score_does_not_depend_on_the_batch(scorer):
    images = pictures(11, 40, 30)
    prompts = [PROMPTS[i % 3] for i in range(11)]
    together = scorer(images, prompts)
    alone = torch.cat([scorer(images[i : i + 1], prompts[i : i + 1]) for i in range(11)])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(scorer(images.flip(0), prompts[::-1]), together.flip(0), atol=1e-6, rtol=1e-5)
    assert scorer(images[:0], []).shape == (0,)


def test_prompts_may_contain_template_fields(scorer):
    """`<image>` and `{question}` in a prompt are words like any others."""
    scores = scorer(pictures(1).expand(3, -1, -1, -1), ["an <image> {}", "{question}", "a fox"])
    assert scores.isfinite().all()
    assert len(set(scores.tolist())) == 3


def checkpoint(parts, tower=True, copies=True):
    language, eyes, projector = parts
    weights = {name: value.clone() for name, value in language.state_dict().items()}
    if copies:  # as the reference's class names the same once more
        weights["embed_tokens.weight"] = weights["shared.weight"].clone()
    else:
        weights = {name: value for name, value in weights.items() if not name.endswith("embed_tokens.weight")}
    weights |= {f"mm_projector.{name}": value for name, value in projector.state_dict().items()}
    if tower:
        name = "vision_tower.vision_tower.vision_model."
        weights |= {name + key: value for key, value in eyes.state_dict().items()}
        weights[name + "embeddings.position_ids"] = torch.arange(5)[None]  # as older transformers kept them
    return weights


@pytest.fixture
def folders(tmp_path, parts):
    """{load's arguments}: tower and tokenizer as published, and a template."""
    from transformers import CLIPConfig, CLIPModel

    parts[1].config.save_pretrained(tmp_path / "tower")
    config = CLIPConfig(
        vision_config=parts[1].config.to_dict(),
        text_config={"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8},
    )
    clip = CLIPModel(config)
    clip.vision_model.load_state_dict(parts[1].state_dict())
    clip.config.save_pretrained(tmp_path / "tower")
    torch.save(clip.state_dict(), tmp_path / "tower" / "pytorch_model.bin")
    t5_tokenizer().save_pretrained(tmp_path / "words")
    (tmp_path / "template.txt").write_text(TEMPLATE)
    return {
        "vision": str(tmp_path / "tower"),
        "tokenizer": str(tmp_path / "words"),
        "template": tmp_path / "template.txt",
    }


def write_language(folder, weights, shards=1, pickles=False):
    from safetensors.torch import save_file

    folder.mkdir(exist_ok=True)
    described = {**t5_config(999), "model_type": "clip_t5", "mm_projector_type": "mlp2x_gelu", "mm_hidden_size": 24}
    (folder / "config.json").write_text(json.dumps(described))
    name, write = ("pytorch_model.bin", torch.save) if pickles else ("model.safetensors", save_file)
    names, places = list(weights), {}
    for i in range(shards):
        file = name if shards == 1 else f"part-{i}-{name}"
        places |= dict.fromkeys(names[i::shards], file)
        write({one: weights[one] for one in names[i::shards]}, folder / file)
    if shards > 1:
        (folder / f"{name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return str(folder)


@pytest.mark.parametrize(
    ("how", "tower"),
    [
        ({}, True),
        ({"shards": 3, "pickles": True}, True),
        ({"shards": 2}, False),
        ({"pickles": True}, False),
    ],
)
def test_folders_are_loaded(tmp_path, parts, scorer, folders, how, tower):
    weights = checkpoint(parts, tower, copies=tower)
    if tower:  # the checkpoint's own counts, not the one of CLIP
        file = f"{folders['vision']}/pytorch_model.bin"
        torch.save({name: torch.zeros_like(v) for name, v in torch.load(file, weights_only=True).items()}, file)
    loaded = VqaScore.load(write_language(tmp_path / "model", weights, **how), **folders)
    torch.testing.assert_close(loaded(pictures(3), PROMPTS), scorer(pictures(3), PROMPTS), atol=1e-7, rtol=1e-5)
    assert not torch.equal(loaded.language.lm_head.weight, loaded.language.shared.weight)
    assert loaded.language.config.scale_decoder_outputs is False
    identity = loaded.protocol["model"]
    assert identity.count("local:") == (2 if tower else 3)
    assert ("its own" in identity) == tower
    assert loaded.protocol | {"model": "tiny"} == scorer.protocol


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda w: w.pop("encoder.block.1.layer.1.DenseReluDense.wo.weight"), "1 missing_keys, encoder.block.1.layer"),
        (lambda w: w.pop("lm_head.weight"), "there is no lm_head.weight"),
        (lambda w: w.pop("shared.weight"), "there is no shared.weight"),
        (lambda w: w.update({"embed_tokens.weight": torch.zeros(9, 16)}), "embed_tokens.weight is not shared.weight"),
        (lambda w: w.update({"extra": torch.zeros(1)}), "1 unexpected_keys, extra"),
        (lambda w: w.update({"encoder.final_layer_norm.weight": torch.zeros(3)}), "1 mismatched_keys, .*final_layer"),
        (lambda w: w.pop("mm_projector.2.bias"), r"(?s)projector's .*Missing key\(s\) .*2.bias"),
        (lambda w: w.update({"mm_projector.4.bias": torch.zeros(1)}), "projector's weights do not fit"),
        (
            lambda w: w.pop("vision_tower.vision_tower.vision_model.pre_layrnorm.bias"),
            "missing_keys, pre_layrnorm.bias",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit(tmp_path, parts, folders, change, says):
    weights = checkpoint(parts)
    change(weights)
    with pytest.raises(ValueError, match=says):
        VqaScore.load(write_language(tmp_path / "model", weights), **folders)


def test_missing_files_are_named(tmp_path, parts, folders):
    source = write_language(tmp_path / "model", checkpoint(parts))
    for left_out, says in (
        (
            "template",
            r"no template ''; needed is a text file that contains <image> and \{question\} once each: .*t2v_metr",
        ),
        ("vision", "no model was named: needed is CLIP's vision tower, openai/clip-vit-large-patch14-336"),
        ("tokenizer", "no model was named: needed is the tokenizer of google/flan-t5-xxl"),
    ):
        with pytest.raises(ValueError, match=says):
            VqaScore.load(source, **{**folders, left_out: ""})
    with pytest.raises(MissingWeights, match="no model was named: needed is CLIP-FlanT5, zhiqiulin/clip-flant5-xxl"):
        VqaScore.load("", **folders)
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingWeights, match="no config.json: needed is CLIP-FlanT5"):
        VqaScore.load(str(tmp_path / "empty"), **folders)
    (tmp_path / "empty" / "config.json").write_text("{}")
    with pytest.raises(MissingWeights, match="neither model.safetensors nor pytorch_model.bin: needed is CLIP-FlanT5"):
        VqaScore.load(str(tmp_path / "empty"), **folders)
    (tmp_path / "empty" / "model.safetensors.index.json").write_text('{"weight_map": {"a": "one.safetensors"}}')
    with pytest.raises(MissingWeights, match="has no one.safetensors, which its index lists"):
        VqaScore.load(str(tmp_path / "empty"), **folders)


def test_a_tokenizer_without_vocabulary_is_refused(tmp_path, parts, folders):
    source = write_language(tmp_path / "model", checkpoint(parts))
    (tmp_path / "words" / "tokenizer.json").unlink()  # and tokenizer_config.json stays
    with pytest.raises(MissingWeights, match="words has no tokenizer.json: needed is the tokenizer of google/flan-t5"):
        VqaScore.load(source, **folders)


def test_pickles_that_hold_code_are_not_run(tmp_path, folders):
    source = tmp_path / "model"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(t5_config(40)))
    torch.save({"shared.weight": re.compile}, source / "pytorch_model.bin")
    with pytest.raises(ValueError, match="contains more than tensors"):
        VqaScore.load(str(source), **folders)


@pytest.mark.parametrize(
    ("images", "prompts", "says"),
    [
        (pictures(2), ["a fox"], "2 images need as many prompts"),
        (pictures(1), [" "], "none of them empty"),
        (pictures(2).float(), ["a fox"] * 2, "expected uint8"),
        (pictures(2)[:, :1], ["a fox"] * 2, "expected uint8"),
        (pictures(2)[0], ["a fox"] * 3, "expected uint8"),
        (pictures(1), ["a fox" * 500], "tokens; the model reads 2048"),
    ],
)
def test_invalid_calls_are_refused(scorer, images, prompts, says):
    with pytest.raises(ValueError, match=says):
        scorer(images, prompts)


def test_parts_that_do_not_fit(parts):
    for template in ("{question}", "<image>", TEMPLATE + "<image>"):
        with pytest.raises(ValueError, match="the template does not contain .* exactly once"):
            new_scorer(parts, template)
    bigger = t5_tokenizer()
    bigger.add_tokens(["more"])
    with pytest.raises(ValueError, match="the tokenizer has 41 tokens, the model 40"):
        VqaScore(*parts, bigger, TEMPLATE, "tiny")
    from transformers import T5Tokenizer

    with pytest.raises(ValueError, match="does not know the word Yes"):
        VqaScore(*parts, T5Tokenizer(extra_ids=0), TEMPLATE, "tiny")
    endless = t5_tokenizer()
    endless._tokenizer.post_processor = None
    with pytest.raises(ValueError, match="end token"):
        VqaScore(*parts, endless, TEMPLATE, "tiny")


def test_protocol_has_every_setting_that_changes_scores(scorer, parts):
    assert json.loads(json.dumps(scorer.protocol)) == scorer.protocol
    assert scorer.protocol["question"] == QUESTION == 'Does this figure show "{}"? Please answer yes or no.'
    assert scorer.protocol["precision"] == "float32"
    other = new_scorer(parts, TEMPLATE + " ")
    assert other.protocol["template"] != scorer.protocol["template"]
