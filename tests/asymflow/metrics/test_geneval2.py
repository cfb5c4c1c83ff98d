"""Soft-TIFA's formula, and the scores of a tiny judge against the computation as GenEval 2 publishes it."""

import random
import statistics

import pytest
import torch
from PIL import Image
from scipy.stats import gmean
from tiny_judge import write_judge

from asymflow.metrics.geneval2 import (
    NUMERALS,
    TEMPLATE,
    YES,
    accepted_answers,
    soft_tifa_am,
    soft_tifa_gm,
    tifa,
)
from asymflow.metrics.image_questions import load_chat_model

PROMPTS = 52


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    return load_chat_model(str(write_judge(tmp_path_factory.mktemp("judge"))), "a judge")


def test_a_number_is_accepted_as_word_and_numeral_with_and_without_a_space():
    assert accepted_answers("How many cats are there?", "two") == ["two", "Two", "2", " two", " Two", " 2"]
    assert accepted_answers("How many cats are there?", "eleven")[2::3] == ["other", " other"]
    assert accepted_answers("Are there how many cats?", "two") == list(YES)
    assert sorted(map(int, NUMERALS.values())) == list(range(1, 11))


def test_means_by_hand():
    assert soft_tifa_am([0.5, 0.25, 1.0]) == pytest.approx(1.75 / 3)
    assert soft_tifa_gm([0.5, 0.25, 1.0]) == pytest.approx(0.5)
    assert soft_tifa_gm([0.0, 1.0]) == 0.0
    assert tifa(["Two", "No", " 2"], [["two", "2"], ["Yes", "yes"], [" 2"]]) == pytest.approx(2 / 3)


@pytest.mark.parametrize("mean", [soft_tifa_am, soft_tifa_gm])
def test_an_image_without_questions_has_no_score(mean):
    with pytest.raises(ValueError, match="questions|no geometric mean"):
        mean([])
    with pytest.raises(ValueError, match="0 questions need as many words"):
        tifa([], [])


def questions(generator):
    """Return the questions and expected answers of a prompt, of both kinds."""
    asked = []
    for _ in range(generator.randint(1, 2)):
        thing = generator.choice(["cats", "red buses", "dogs on a table"])
        number = generator.choice([*NUMERALS, "eleven"])
        asked.append((f"How many {thing} are in the image?", number))
        asked.append((f"Are there {thing} in the image?", "Yes"))
    return asked


def published_scores(judge, image, asked):
    """Return the probabilities of one image, one question at a time, as the paper's section on Soft-TIFA defines them.

    This is independent of `ChatModel`: the processor's own chat template on messages, one forward pass per question.
    """
    found = []
    for question, expected in asked:
        content = [{"type": "image", "image": image}, {"type": "text", "text": f"{question} Answer in one word."}]
        inputs = judge.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt",
        )  # fmt: skip
        with torch.no_grad():
            odds = judge.model(**inputs).logits[0, -1].softmax(-1).tolist()
        texts = ["Yes", "yes", " Yes", " yes"]
        if question.startswith("How many"):
            digits = dict(zip("one two three four five six seven eight nine ten".split(), range(1, 11), strict=True))
            digit = str(digits.get(expected, "other"))
            texts = [expected, expected.capitalize(), digit]
            texts += [" " + text for text in texts]
        found.append(sum(odds[judge.processor.tokenizer.encode(text)[0]] for text in texts))
    return found


def test_scores_equal_the_published_computation(judge):
    generator = random.Random(0)
    images = torch.randint(0, 256, (PROMPTS, 3, 64, 64), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    asked = [questions(generator) for _ in range(PROMPTS)]
    places = [i for i, own in enumerate(asked) for _ in own]
    texts = [TEMPLATE.format(question=question) for own in asked for question, _ in own]
    answers = [accepted_answers(*pair) for own in asked for pair in own]
    found, _ = judge.answer_probabilities(images[places], texts, answers)

    expected = [
        published_scores(judge, Image.fromarray(image.permute(1, 2, 0).numpy()), own)
        for image, own in zip(images, asked, strict=True)
    ]
    assert found == pytest.approx([p for own in expected for p in own], rel=1e-4)
    assert len({round(p, 6) for p in found}) > PROMPTS  # they depend on the image and the question
    remaining = iter(found)
    scores = [[next(remaining) for _ in own] for own in asked]
    am, gm = (statistics.mean(map(mean, scores)) for mean in (soft_tifa_am, soft_tifa_gm))
    assert am == pytest.approx(statistics.mean(sum(own) / len(own) for own in expected), rel=1e-5)
    assert gm == pytest.approx(statistics.mean(float(gmean(own)) for own in expected), rel=1e-5)
    assert gm < am
