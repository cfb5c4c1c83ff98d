"""Scorers that ask a vision-language chat model about images, by a template, for probabilities of answers or a text.

`pipelines.evaluate.question_files` reads the questions into the prompts' `data`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, field_validator

from asymflow.metrics import geneval2, oneig, unigenbench
from asymflow.metrics.protocol import Protocol, fingerprint
from pipelines.evaluate.scorer import ModelScorer, Row, Score

if TYPE_CHECKING:  # settings are read without torch; `load` imports the model's module
    from torch import Tensor

    from asymflow.metrics.image_questions import ChatModel
    from pipelines.evaluate.prompts import Prompt

QUESTION = "{question}"
"""Field of a template"""


class ChatScorer(ModelScorer, ABC):
    """Vision-language chat model."""

    half_on_gpu = True

    def load(self, device: str) -> tuple[Score, Protocol]:
        """Return the scoring function and its protocol."""
        from asymflow.metrics.image_questions import load_chat_model

        judge = load_chat_model(self.model, self.needed["model"][0], device=device)

        def score(images: "Tensor", prompts: "Sequence[Prompt]") -> list[Row]:
            return self.ask(judge, images, prompts)

        return score, {**judge.protocol, "metric": "judge", **self.describe(judge)}

    @abstractmethod
    def describe(self, judge: "ChatModel") -> dict[str, Any]:
        """Return what the protocol says about questions and replies."""

    @abstractmethod
    def ask(self, judge: "ChatModel", images: "Tensor", prompts: "Sequence[Prompt]") -> list[Row]:
        """Return a row per image."""


class JudgeScorer(ChatScorer):
    """The probability of an accepted answer to each question."""

    template: str = QUESTION
    """Text behind the image, containing {question}"""
    needed = {"model": ("a vision-language chat model of transformers, such as Qwen/Qwen3-VL-8B-Instruct", "")}
    spellings: ClassVar[Sequence[str]] = ()
    """Accepted answers whose first tokens the protocol lists"""

    @field_validator("template")
    @classmethod
    def _has_the_question(cls, value: str) -> str:
        if value.count(QUESTION) != 1:
            raise ValueError(f"must contain {QUESTION} once")
        return value

    def describe(self, judge: "ChatModel") -> dict[str, Any]:
        """Return the template, and the tokens of the accepted answers."""
        tokens = {text: judge.first_token(text) for text in self.spellings}
        reply = "probability of the first tokens of the accepted answers"
        return {"question": self.template, "reply": reply, "tokens": tokens}

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


class OneIgScorer(JudgeScorer):
    """OneIG-Bench's alignment: yes/no questions."""

    template: str = oneig.TEMPLATE
    needed = {"model": ("Qwen/Qwen2.5-VL-7B-Instruct", "")}
    spellings = (oneig.YES,)


class ReplyScorer(ChatScorer):
    """The text that the model writes about each image."""

    template: str = ""
    """A text file with the question, by the benchmark's authors"""
    max_tokens: int = Field(1024, ge=1)
    """Limit of generated tokens per reply"""
    fields: ClassVar[Sequence[str]] = ()
    """What the template must contain"""
    origin: ClassVar[str]
    """Where the template is"""

    def identity(self) -> dict[str, Any]:
        """Return what determines its replies, including the template."""
        return {**super().identity(), "template": fingerprint({"text": self.read_template()})}

    def read_template(self) -> str:
        """Return the template. Raises MissingWeights."""
        from asymflow.metrics.templates import read_template

        return read_template(self.template, self.fields, self.origin, once=False)

    def describe(self, judge: "ChatModel") -> dict[str, Any]:
        """Return the template's hash, and the limit of the reply."""
        question = fingerprint({"text": self.read_template()})
        return {"question": question, "reply": f"greedy, at most {self.max_tokens} tokens"}

    def ask(self, judge: "ChatModel", images: "Tensor", prompts: "Sequence[Prompt]") -> list[Row]:
        """Return the reply about each image."""
        template = self.read_template()
        questions = [self.build_question(template, prompt) for prompt in prompts]
        return [{"reply": reply} for reply in judge.write(images, questions, self.max_tokens)]

    def build_question(self, template: str, prompt: "Prompt") -> str:
        """Return the question about the image of a prompt."""
        return template


class LongTextScorer(ReplyScorer):
    """LongText-Bench: the text in an image."""

    needed = {"model": ("Qwen/Qwen2.5-VL-7B-Instruct", "")}
    origin = "qwen_prompt of textbench/evaluate_text_reward.py in X-Omni-Team/X-Omni"


class UniGenBenchScorer(ReplyScorer):
    """UniGenBench++: a list of scores, one per test point."""

    max_tokens: int = Field(2048, ge=1)
    definitions: str = ""
    """A JSON file, {test point: definition}"""
    needed = {"model": ("the benchmark's judge, CodeGoat24/UniGenBench-EvalModel-qwen-72b-v1", "")}
    fields = unigenbench.FIELDS
    origin = unigenbench.ORIGIN

    def identity(self) -> dict[str, Any]:
        """Return what determines its replies, including the definitions."""
        return {**super().identity(), "definitions": fingerprint(self.read_definitions())}

    def read_definitions(self) -> dict[str, str]:
        """Return the definition of each test point. Raises MissingWeights."""
        from asymflow.metrics.weights import MissingWeights
        from asymflow.text_files import read_json_object

        needed = "needed is a JSON file of explanation_dict, {test point: definition}, beside the template's text"
        if not self.definitions:
            raise MissingWeights(f"definitions: no file was named; {needed}")
        try:
            found = read_json_object(self.definitions)
        except (OSError, ValueError) as error:
            raise MissingWeights(f"definitions: {error}; {needed}") from None
        if not found or not all(isinstance(text, str) for text in found.values()):
            raise MissingWeights(f"definitions: {self.definitions} does not map test points to texts; {needed}")
        return found

    def describe(self, judge: "ChatModel") -> dict[str, Any]:
        """Return the template's and definitions' hashes, and the limit of the reply."""
        return {**super().describe(judge), "definitions": fingerprint(self.read_definitions())}

    def build_question(self, template: str, prompt: "Prompt") -> str:
        """Return the question about the image of a prompt."""
        points, descriptions = prompt.data["testpoints"], prompt.data["descriptions"]
        return unigenbench.build_question(template, prompt.text, points, descriptions, self.read_definitions())
