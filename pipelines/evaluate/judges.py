"""Scorers that ask a vision-language chat model about images. A benchmark is a template and its accepted answers.

A prompt's `data["questions"]` lists its questions, as `pipelines.evaluate.question_files` reads them.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import field_validator

from asymflow.metrics import geneval2
from asymflow.metrics.protocol import Protocol
from pipelines.evaluate.scorer import ModelScorer, Row, Score

if TYPE_CHECKING:  # settings are read without torch; `load` imports the model's module
    from torch import Tensor

    from asymflow.metrics.image_questions import ChatModel
    from pipelines.evaluate.prompts import Prompt

QUESTION = "{question}"
"""Field of a template"""


class JudgeScorer(ModelScorer):
    """Vision-language chat model: the probability that it gives an accepted answer to each question."""

    template: str = QUESTION
    """Text behind the image, containing {question}"""
    needed = {"model": ("a vision-language chat model of transformers, such as Qwen/Qwen3-VL-8B-Instruct", "")}
    half_on_gpu = True
    spellings: ClassVar[Sequence[str]] = ()
    """Accepted answers whose first tokens the protocol lists"""

    @field_validator("template")
    @classmethod
    def _has_the_question(cls, value: str) -> str:
        if value.count(QUESTION) != 1:
            raise ValueError(f"must contain {QUESTION} once")
        return value

    def load(self, device: str) -> tuple[Score, Protocol]:
        """Return the scoring function and its protocol."""
        from asymflow.metrics.image_questions import load_chat_model

        judge = load_chat_model(self.model, self.needed["model"][0], device=device)

        def score(images: "Tensor", prompts: "Sequence[Prompt]") -> list[Row]:
            return self.ask(judge, images, prompts)

        return score, {**judge.protocol, "metric": "judge", "question": self.template, **self.describe(judge)}

    def describe(self, judge: "ChatModel") -> dict[str, Any]:
        """Return what the protocol says about replies."""
        tokens = {text: judge.first_token(text) for text in self.spellings}
        return {"reply": "probability of the first tokens of the accepted answers", "tokens": tokens}

    def ask(self, judge: "ChatModel", images: "Tensor", prompts: "Sequence[Prompt]") -> list[Row]:
        """Return a row per image: the mean probability, all of them, and the most probable first tokens."""
        places, questions = self.questions(prompts)
        answers = [question["answers"] for prompt in prompts for question in prompt.data["questions"]]
        found = list(zip(*judge.answer_probabilities(images[places], questions, answers), strict=True))
        rows = []
        for own in _split(found, prompts):
            probabilities = [probability for probability, _ in own]
            score = sum(probabilities) / len(probabilities)
            rows.append({"score": score, "probabilities": probabilities, "words": [word for _, word in own]})
        return rows

    def questions(self, prompts: "Sequence[Prompt]") -> tuple[list[int], list[str]]:
        """Return the index of each question's image, and the text of the question in the template."""
        pairs = [(i, question["question"]) for i, one in enumerate(prompts) for question in one.data["questions"]]
        return [i for i, _ in pairs], [self.template.replace(QUESTION, text) for _, text in pairs]


def _split(found: Sequence[Any], prompts: "Sequence[Prompt]") -> list[Sequence[Any]]:
    parts, start = [], 0
    for prompt in prompts:
        end = start + len(prompt.data["questions"])
        parts.append(found[start:end])
        start = end
    return parts


class GenEval2Scorer(JudgeScorer):
    """GenEval 2: probabilities of the expected answers."""

    template: str = geneval2.TEMPLATE
    needed = {"model": ("Qwen/Qwen3-VL-8B-Instruct", "")}
    spellings = tuple(
        dict.fromkeys(
            text
            for question, words in (("", ("",)), (geneval2.COUNTING, geneval2.NUMERALS))
            for word in words
            for text in geneval2.accepted_answers(question, word)
        )
    )
