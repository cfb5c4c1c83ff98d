import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny_flan_t5 import TEXT, write_models

from asymflow.metrics.vqa_score import QUESTION, VqaScore, squared
from asymflow.metrics.weights import MissingWeights

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PROMPTS = ["a cat", "two dogs on a {red} sofa", "x"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("vqa")
    write_models(root)
    return root


def load(root, **changes):
    options = {"source": str(root / "t5"), "vision": str(root / "vision"), "template": str(root / "template.txt")}
    return VqaScore.load(**{**options, **changes})


@pytest.fixture(scope="module")
def metric(root):
    return load(root)


def pictures(count=3, height=40, width=40):
    seeded = torch.Generator().manual_seed(4)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=seeded)


def test_the_score_is_the_answers_likelihood_written_out(metric):
    """Token by token through encoder and decoder, without labels."""
    image, prompt = pictures(1), PROMPTS[1]
    pixels = torch.from_numpy(np.array(Image.fromarray(image[0].permute(1, 2, 0).numpy()).resize((28, 28), 3)))
    pixels = ((pixels / 255 - torch.tensor(MEAN)) / torch.tensor(STD)).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        patches = metric.vision(pixels, output_hidden_states=True).hidden_states[2][:, 1:]  # of 4: the last but one
        picture = metric.t5.mm_projector(patches)[0]
        tokens = metric.tokenizer
        question = f'\nUser: Does this figure show "{prompt}"? Please answer yes or no. Answer: '
        before, after = tokens("You are shown ").input_ids, tokens(question).input_ids
        assert before[-1] == after[-1] == tokens.eos_token_id
        embed = metric.t5.shared
        inputs = torch.cat([embed(torch.tensor(before)), picture, embed(torch.tensor(after))])[None]
        encoded = metric.t5.encoder(inputs_embeds=inputs)
        answer = tokens("Yes").input_ids
        assert len(answer) == 2 and answer[-1] == tokens.eos_token_id
        given = torch.tensor([[0, *answer[:-1]]])
        logits = metric.t5(encoder_outputs=encoded, decoder_input_ids=given).logits[0]
    chances = logits.softmax(-1)[[0, 1], answer]
    torch.testing.assert_close(metric(image, [prompt])[0], chances.prod() ** 0.5, rtol=1e-4, atol=0)
    assert QUESTION.format(prompt) in question


def test_a_model_that_knows_nothing_finds_all_answers_alike(root):
    blank = load(root)
    for parameter in blank.t5.parameters():
        parameter.data.zero_()
    scores = blank(pictures(), PROMPTS)
    torch.testing.assert_close(scores, torch.full((3,), 1 / blank.t5.config.vocab_size))


def test_a_picture_is_scored_alone(metric):
    images = pictures()
    together = metric(images, PROMPTS)
    assert together.dtype == torch.float32 and ((together > 0) & (together < 1)).all()
    for i in range(3):
        alone = metric(images[i : i + 1], PROMPTS[i : i + 1])[0]
        torch.testing.assert_close(alone, together[i], rtol=1e-4, atol=0)
    other = metric(255 - images, PROMPTS)
    assert ((other - together).abs() > 1e-3 * together).all()  # it looks at the picture


def test_pictures_stand_in_a_square_of_the_mean_colour():
    wide = squared(torch.full((3, 10, 16), 200, dtype=torch.uint8), MEAN)
    array = np.array(wide)
    assert array.shape == (16, 16, 3) and (array[3:13] == 200).all()
    assert (array[:3] == [122, 116, 104]).all() and (array[13:] == [122, 116, 104]).all()
    tall = np.array(squared(torch.full((3, 16, 9), 200, dtype=torch.uint8), MEAN))
    assert (tall[:, 3:12] == 200).all() and (tall[:, :3] == [122, 116, 104]).all() and (tall[:, 12:] == 104).any()
    same = squared(torch.full((3, 5, 5), 7, dtype=torch.uint8), MEAN)
    assert same.size == (5, 5)


def test_checkpoints_with_the_vision_model_inside_and_in_old_files(metric, root, tmp_path):
    import shutil

    from safetensors.torch import load_file

    shutil.copytree(root / "t5", tmp_path / "t5")
    weights = load_file(tmp_path / "t5" / "model.safetensors")
    (tmp_path / "t5" / "model.safetensors").unlink()
    weights["vision_tower.vision_tower.x"] = torch.zeros(1)  # frozen in training: the same as its own repository's
    torch.save(weights, tmp_path / "t5" / "pytorch_model.bin")
    old = load(root, source=str(tmp_path / "t5"))
    assert torch.equal(old(pictures(), PROMPTS), metric(pictures(), PROMPTS))


def test_it_says_what_it_is(metric, root, tmp_path):
    assert metric.protocol["question"] == QUESTION and metric.protocol["precision"] == "float32"
    (tmp_path / "other.txt").write_text(TEXT + "!")
    other = load(root, template=str(tmp_path / "other.txt"))
    assert other.protocol != metric.protocol and F.l1_loss(other(pictures(), PROMPTS), metric(pictures(), PROMPTS)) > 0


def test_what_is_missing_or_does_not_fit(root, tmp_path, metric):
    import shutil

    from safetensors.torch import load_file, save_file

    for changes, says in (
        ({"template": ""}, "no template was named: .*<image> and {question} in it, which the package t2v_metrics"),
        ({"source": ""}, "needed is zhiqiulin/clip-flant5-xxl"),
        ({"source": str(root / "vision")}, "knows no mm_hidden_size, so it is no CLIP-FlanT5"),
        ({"vision": str(tmp_path / "none")}, "CLIP ViT-L/14-336 of transformers"),
    ):
        with pytest.raises(ValueError, match=says):
            load(root, **changes)
    shutil.copytree(root / "t5", tmp_path / "t5")
    weights = load_file(root / "t5" / "model.safetensors")
    fewer = {name: value for name, value in weights.items() if name != "mm_projector.2.bias"}
    for changed, says in (
        (fewer, "missing or unknown are mm_projector.2.bias"),
        ({**weights, "surplus": torch.zeros(1)}, "missing or unknown are surplus"),
    ):
        save_file(changed, tmp_path / "t5" / "model.safetensors", {"format": "pt"})
        with pytest.raises(MissingWeights, match=says):
            load(root, source=str(tmp_path / "t5"))
    with pytest.raises(ValueError, match="3 pictures and 1 prompts"):
        metric(pictures(), ["x"])
