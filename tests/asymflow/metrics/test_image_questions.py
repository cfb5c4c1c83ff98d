import json

import pytest
import torch
from captioner_fixture import write_captioner  # asymflow before transformers
from tiny_judge import write_judge

from asymflow.metrics.image_questions import load_chat_model
from asymflow.metrics.weights import MissingWeights

QUESTIONS = ("Is it bright?", "How many?", "What is written on the sign in the image?")


def images(count, size=64):
    return torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("judges")
    return {"qwen3": str(write_judge(root / "qwen3")), "qwen2_5": str(write_captioner(root / "qwen2_5"))}


@pytest.fixture(scope="module", params=["qwen3", "qwen2_5"])
def judge(request, folders):
    return load_chat_model(folders[request.param], "a judge")


def test_the_probabilities_of_a_set_of_first_tokens_sum_to_one(judge):
    tokenizer = judge.processor.tokenizer
    texts = [tokenizer.decode(i) for i in range(len(tokenizer))]
    first = {judge.first_token(text): text for text in texts if text and "\ufffd" not in text}
    found, words = judge.answer_probabilities(images(1), ["Is it?"], [list(first.values())])
    assert 0.2 < found[0] <= 1 + 1e-6
    assert len(words) == 1


def test_answers_that_share_a_first_token_count_as_often_as_they_occur(judge):
    once, twice = (judge.answer_probabilities(images(1), ["Is it?"], [[*["Yes"] * n]])[0][0] for n in (1, 2))
    assert 0 < once
    assert twice == pytest.approx(2 * once)


def test_replies_do_not_depend_on_the_batch(judge):
    many, questions = images(10), [QUESTIONS[i % 3] for i in range(10)]
    answers = [["Yes", " yes"] if i % 2 else ["two"] for i in range(10)]
    found, words = judge.answer_probabilities(many, questions, answers)
    texts = judge.write(many, questions, 6)
    for i in (0, 4, 9):
        alone = judge.answer_probabilities(many[i : i + 1], questions[i : i + 1], answers[i : i + 1])
        assert (alone[0][0], alone[1]) == (pytest.approx(found[i], rel=1e-4), [words[i]])
        assert judge.write(many[i : i + 1], questions[i : i + 1], 6) == [texts[i]]
    assert len(set(found)) == 10
    assert len(set(texts)) > 1
    assert judge.answer_probabilities(many[:0], [], []) == ([], [])
    assert judge.write(many[:0], [], 6) == []


def test_the_first_word_of_the_text_is_the_most_probable_token(judge):
    _, words = judge.answer_probabilities(images(4), [QUESTIONS[0]] * 4, [["Yes"]] * 4)
    special = set(judge.processor.tokenizer.all_special_tokens)
    assert judge.write(images(4), [QUESTIONS[0]] * 4, 1) == ["" if word in special else word for word in words]


def test_protocol_names_the_model(judge):
    assert json.loads(json.dumps(judge.protocol)) == judge.protocol
    assert judge.protocol["model"].startswith("local:")
    assert judge.protocol["class"] == type(judge.model).__name__


@pytest.mark.parametrize(
    ("questions", "answers", "named"),
    [
        (["Is it?"], [["Yes"]], "2 images need as many questions"),
        (["Is it?", " "], [["Yes"]] * 2, "none of them empty"),
        (["Is it?"] * 2, [["Yes"], []], "2 questions need at least one accepted answer each"),
        (["Is it?"] * 2, [["Yes"]], "2 questions need at least one accepted answer each"),
        (["x " * 3000, "Is it?"], [["Yes"]] * 2, "tokens; the model reads 2048"),
    ],
)
def test_invalid_calls_are_refused(judge, questions, answers, named):
    with pytest.raises(ValueError, match=named):
        judge.answer_probabilities(images(2), questions, answers)


def test_missing_models_and_models_of_another_kind(folders, tmp_path):
    with pytest.raises(MissingWeights, match="no model was named: needed is a judge"):
        load_chat_model("", "a judge")
    with pytest.raises(MissingWeights, match="needed is a judge"):
        load_chat_model(str(tmp_path), "a judge")
    judge = load_chat_model(folders["qwen3"], "a judge")
    tokenizer = type("Tokenizer", (), {"chat_template": None})()
    processor = type("Processor", (), {"tokenizer": tokenizer, "image_processor": None})()
    with pytest.raises(ValueError, match="it has no chat template: it is not a chat model"):
        type(judge)(judge.model, processor, "it")
