import pytest
import torch

from asymflow.metrics.weights import MissingWeights
from pipelines.core.config import ConfigError, validate
from pipelines.evaluate.judges import GenEval2Scorer, JudgeScorer, LongTextScorer, UniGenBenchScorer
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
    assert protocol["metric"] == "judge"
    assert protocol["question"] == "{question} Answer in one word."
    assert protocol["model"].startswith("local:")
    assert protocol["class"] == "Qwen3VLForConditionalGeneration"
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


def test_a_reply_is_the_text_behind_the_template(scorers, images, tmp_path):
    scorer = LongTextScorer(**scorers["long_text"])
    score, protocol = scorer.load("cpu")
    replies = [row["reply"] for row in score(images, [Prompt("0", "a", data={}), Prompt("1", "b", data={})])]
    assert len(set(replies)) == 2
    assert protocol["reply"] == "greedy, at most 8 tokens"
    (tmp_path / "other.txt").write_text("Read it.")
    other = scorer.model_copy(update={"template": str(tmp_path / "other.txt")})
    assert other.identity() != scorer.identity()
    assert other.load("cpu")[1]["question"] != protocol["question"]


def test_test_points_are_asked_with_their_definitions(scorers, images):
    scorer = UniGenBenchScorer(**scorers["unigenbench"])
    prompt = Prompt("0", "an oil painting", data={"testpoints": ["Style"], "descriptions": ["oil"]})
    assert scorer.build_question(scorer.read_template(), prompt) == (
        "an oil painting, ['Style']: \nStyle: how it is painted; \nStyle: oil. <score>"
    )
    score, protocol = scorer.load("cpu")
    assert isinstance(score(images[:1], [prompt])[0]["reply"], str)
    assert {"question", "definitions"} <= protocol.keys()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"template": ""}, "there is no template ''; needed is a text file that contains {prompt} and {testpoints}"),
        ({"definitions": ""}, "definitions: no file was named; needed is a JSON file of explanation_dict"),
        ({"definitions": "empty.json"}, "does not map test points to texts"),
        ({"template": "empty.txt"}, "is empty or lacks a field"),
        ({"model": ""}, "model: no model was named: needed is the benchmark's judge, CodeGoat24/UniGenBench"),
    ],
)
def test_missing_files_are_named(scorers, tmp_path, change, named):
    (tmp_path / "empty.json").write_text("{}")
    (tmp_path / "empty.txt").write_text("{prompt}")
    change = {name: str(tmp_path / value) if value.startswith("empty") else value for name, value in change.items()}
    with pytest.raises(MissingWeights, match=named):
        UniGenBenchScorer(**{**scorers["unigenbench"], **change}).identity()
