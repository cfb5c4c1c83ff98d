import pytest
import torch

from pipelines.core.config import ConfigError, validate
from pipelines.evaluate.judges import GenEval2Scorer, JudgeScorer
from pipelines.evaluate.prompts import Prompt


@pytest.fixture(scope="module")
def images():
    return torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(2)).to(torch.uint8)


def prompts(*counts):
    ask = [{"question": "Is it a cat?", "answers": ["Yes"], "group": ""}, {"question": "Is it?", "answers": ["No"]}]
    return [Prompt(str(n), str(n), data={"questions": ask[:n]}) for n in counts]


def test_a_row_holds_the_answers_to_the_questions_of_its_prompt(scorers, images):
    score, _ = JudgeScorer(**scorers["judge"]).load("cpu")
    rows = score(images, prompts(2, 1))
    assert [len(row["probabilities"]) for row in rows] == [2, 1] == [len(row["words"]) for row in rows]
    assert rows[0]["score"] == pytest.approx(sum(rows[0]["probabilities"]) / 2)
    assert score(images[1:], prompts(1))[0]["probabilities"] == pytest.approx(rows[1]["probabilities"], rel=1e-4)


def test_the_protocol_holds_template_answer_tokens_and_model(scorers):
    _, protocol = GenEval2Scorer(**scorers["geneval2"]).load("cpu")
    assert protocol["metric"] == "judge" and protocol["question"] == "{question} Answer in one word."
    assert protocol["model"].startswith("local:") and protocol["class"] == "Qwen3VLForConditionalGeneration"
    assert {"Yes", " Yes", "two", " Two", "10", " 10"} <= protocol["tokens"].keys()
    assert len(protocol["tokens"]) == 4 + 10 * 6


def test_the_template_changes_the_answers_and_the_identity(scorers, images):
    plain = JudgeScorer(**scorers["judge"])
    other = JudgeScorer(**scorers["judge"], template="{question} Answer yes or no.")
    assert plain.identity() != other.identity()
    found = [scorer.load("cpu")[0](images, prompts(1, 1)) for scorer in (plain, other)]
    assert found[0][0]["probabilities"] != found[1][0]["probabilities"]
    with pytest.raises(ConfigError, match="template='Answer.'.*must contain {question} once"):
        validate(JudgeScorer, {"template": "Answer."})
