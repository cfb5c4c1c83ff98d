import json

import pytest
import torch
from captioner_fixture import write_captioner  # asymflow before transformers
from tiny_vqa_models import QUESTIONS, pictures, write_blip, write_vilt

from asymflow.metrics.weights import MissingWeights
from asymflow.metrics.yes_no import Chat, Classified, Generated, is_yes, load_yes_no


def write_qwen(folder):
    """The captioner's tiny Qwen2.5-VL, with "y" and "n" pointed along what differs between pictures."""
    write_captioner(folder)
    chat = load_yes_no(str(folder))
    model, hidden = chat.model, []
    hook = model.lm_head.register_forward_pre_hook(lambda _, inputs: hidden.append(inputs[0][0, -1]))
    for image in pictures(8, size=64):
        chat(image[None], [QUESTIONS[0]])
    hook.remove()
    hidden = torch.stack(hidden)
    mean = hidden.mean(0)
    direction = torch.linalg.svd(hidden - mean).Vh[0]
    direction = direction - mean * (direction @ mean) / (mean @ mean)
    with torch.no_grad():
        for tokens, sign in ((chat.yes, 1), (chat.no, -1)):
            model.lm_head.weight[tokens] = sign * direction
    model.config.tie_word_embeddings = False
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {
        "blip": write_blip(root / "blip"),
        "vilt": write_vilt(root / "vilt"),
        "qwen": write_qwen(root / "qwen"),
    }


@pytest.fixture(scope="module", params=["blip", "vilt", "qwen"])
def model(request, folders):
    return load_yes_no(folders[request.param])


@pytest.mark.parametrize(
    ("answer", "yes"),
    [("yes", True), (" Yes\n", True), ("YES", True), ("no", False), ("yes.", False), ("yes yes", False), ("", False)],
)
def test_an_answer_is_this_one_word(answer, yes):
    assert is_yes(answer) is yes


def test_a_trained_blip_answers_about_brightness(folders):
    blip = load_yes_no(folders["blip"])
    assert type(blip) is Generated
    assert blip(pictures(6, seed=1), ["is it bright?"] * 6) == [False, True] * 3
    assert {p.dtype for p in blip.model.parameters()} == {torch.float32}


def test_vilt_answers_with_the_most_probable_label(folders):
    vilt = load_yes_no(folders["vilt"])
    assert type(vilt) is Classified
    images = pictures(8, seed=1)
    inputs = vilt.processor(images=list(images), text=[QUESTIONS[0]] * 8, return_tensors="pt")
    with torch.no_grad():
        expected = (vilt.model(**inputs).logits.argmax(-1) == 1).tolist()
    assert len(set(expected)) == 2
    assert vilt(images, [QUESTIONS[0]] * 8) == expected


def test_a_chat_model_answers_by_its_first_token(folders):
    chat = load_yes_no(folders["qwen"])
    assert type(chat) is Chat
    decode = chat.processor.tokenizer.decode
    assert [[decode(token) for token in tokens] for tokens in (chat.yes, chat.no)] == [["Y", "y"], ["N", "n"]]
    images, expected = pictures(8, seed=1, size=64), []
    for image in images:
        prompt = (
            "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>is it bright? Answer yes or no.<|im_end|>\n"
            "<|im_start|>assistant\n"
        )
        inputs = chat.processor(images=[image], text=[prompt], return_tensors="pt")
        with torch.no_grad():
            odds = chat.model(**inputs).logits[0, -1].softmax(-1)
        expected.append(bool(odds[chat.yes].sum() > odds[chat.no].sum()))
    assert len(set(expected)) == 2
    assert chat(images, ["is it bright?"] * 8) == expected


def test_answers_do_not_depend_on_the_batch(model):
    images = pictures(12, seed=2, size=64)
    questions = [QUESTIONS[i % 4] for i in range(12)]
    together = model(images, questions)
    assert together == [model(images[i : i + 1], questions[i : i + 1])[0] for i in range(12)]
    assert model(images.flip(0), questions[::-1]) == together[::-1]
    assert model(images[:0], []) == []


def test_questions_are_not_padded(model, monkeypatch):
    masks, answer = [], model._answer
    monkeypatch.setattr(model, "_answer", lambda inputs: masks.append(inputs["attention_mask"]) or answer(inputs))
    model(pictures(12), [QUESTIONS[i % 4] for i in range(12)])
    assert sum(len(mask) for mask in masks) == 12
    assert len(masks) == 4
    assert all(mask.all() for mask in masks)


def test_protocol_names_the_model(model, folders):
    assert json.loads(json.dumps(model.protocol)) == model.protocol
    assert model.protocol["model"].startswith("local:")
    assert model.protocol["precision"] == "float32"
    others = {load_yes_no(folder).protocol["model"] for folder in folders.values()}
    assert len(others) == 3
    assert model.protocol["model"] in others


@pytest.mark.parametrize(
    ("images", "questions", "named"),
    [
        (pictures(2), ["is it?"], "2 images need as many questions"),
        (pictures(2), ["is it?", " "], "none of them empty"),
        (pictures(2).float(), ["is it?"] * 2, "expected uint8"),
        (pictures(2)[0], ["is it?"] * 3, "expected uint8"),
        (pictures(2)[:, :1], ["is it?"] * 2, "expected uint8"),
    ],
)
def test_invalid_calls_are_refused(model, images, questions, named):
    with pytest.raises(ValueError, match=named):
        model(images, questions)


def test_a_question_is_not_cut_off(folders):
    with pytest.raises(ValueError, match="52 tokens; the model reads 24"):
        load_yes_no(folders["vilt"])(pictures(1), ["is " * 50])


def test_models_of_another_kind(tmp_path, folders):
    with pytest.raises(MissingWeights, match="no model was named: needed is a visual question"):
        load_yes_no("")
    with pytest.raises(ValueError, match="has no label 'yes'"):
        load_yes_no(write_vilt(tmp_path / "vilt", labels=("cat", "dog", "fox")))
    chat = load_yes_no(folders["qwen"])
    same = type("Same", (), {"encode": lambda self, text, **_: [5], "chat_template": "x"})()
    monkey = type("Processor", (), {"tokenizer": same, "image_processor": None})()
    with pytest.raises(ValueError, match="begin with the same token"):
        Chat(chat.model, monkey, "it")
    same.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        Chat(chat.model, monkey, "it")


def test_weights_that_are_not_safetensors_are_not_read(tmp_path, folders):
    for name in ("config.json", "preprocessor_config.json", "processor_config.json", "tokenizer.json"):
        source = f"{folders['blip']}/{name}"
        try:
            (tmp_path / name).write_bytes(open(source, "rb").read())
        except FileNotFoundError:
            continue
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(MissingWeights, match="safetensors"):
        load_yes_no(str(tmp_path))
