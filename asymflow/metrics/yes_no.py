"""Yes/no questions about images, by any visual question answering or chat model of transformers."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from asymflow.devices import default_dtype
from asymflow.metrics.image_questions import ChatModel, QuestionBatches, load_pretrained
from asymflow.metrics.weights import MissingWeights, find

CHAT_QUESTION = "{} Answer yes or no."
_MAX_ANSWER = 10  # tokens


def is_yes(answer: str) -> bool:
    """Return whether an answer is the one word yes, the benchmark's rule.

    Args:
        answer: The answer.

    Returns:
        True for yes, in any case and with spaces around it.
    """
    return answer.strip().lower() == "yes"


class YesNo(QuestionBatches, ABC):
    """Answer one yes/no question per image. Load a subclass with `load_yes_no`.

    Args:
        model: The model.
        processor: Its processor.
        identity: Name of the weights in the protocol.
    """

    def __init__(self, model: Any, processor: Any, identity: str):
        super().__init__(model, processor, identity)
        self.protocol["metric"] = "yes_no"

    @torch.inference_mode()
    def __call__(self, images: Tensor, questions: Sequence[str]) -> list[bool]:
        """Answer the questions.

        Args:
            images: sRGB images, uint8 (B, 3, H, W).
            questions: One question per image.

        Returns:
            True for yes, per image.

        Raises:
            ValueError: For other images, another number of questions, or a question that is empty or too long.
        """
        found = [False] * len(images)
        for indices, inputs in self.batches(images, questions):
            for i, yes in zip(indices, self._answer(inputs), strict=True):
                found[i] = yes
        return found

    @abstractmethod
    def _answer(self, inputs: Any) -> list[bool]: ...


class Generated(YesNo):
    """Model that generates its answer, such as BLIP: greedily, at most 10 tokens.

    Args:
        model: The model.
        processor: Its processor.
        identity: Name of the weights in the protocol.
    """

    def __init__(self, model: Any, processor: Any, identity: str):
        super().__init__(model, processor, identity)
        self.protocol["answer"] = f"greedy, {_MAX_ANSWER} tokens"

    def _answer(self, inputs: Any) -> list[bool]:
        written = self.model.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=_MAX_ANSWER)
        return [is_yes(text) for text in self.processor.tokenizer.batch_decode(written, skip_special_tokens=True)]


class Classified(YesNo):
    """Model that selects one of its labels, such as ViLT.

    Args:
        model: The model.
        processor: Its processor.
        identity: Name of the weights in the protocol.

    Raises:
        ValueError: If none of the labels is "yes".
    """

    def __init__(self, model: Any, processor: Any, identity: str):
        super().__init__(model, processor, identity)
        self.protocol["answer"] = "likeliest label"
        self.yes = [i for i, label in model.config.id2label.items() if is_yes(label)]
        if not self.yes:
            raise ValueError(f"{identity} has no label 'yes' among its {len(model.config.id2label)}")

    def _answer(self, inputs: Any) -> list[bool]:
        return [label in self.yes for label in self.model(**inputs).logits.argmax(-1).tolist()]


class Chat(YesNo, ChatModel):
    """Chat model, such as Qwen2-VL: yes if "yes" or "Yes" is likelier to begin the answer than "no" or "No".

    Args:
        model: The model.
        processor: Its processor.
        identity: Name of the weights in the protocol.

    Raises:
        ValueError: If the model has no chat template, or "yes" and "no" begin with the same token.
    """

    def __init__(self, model: Any, processor: Any, identity: str):
        super().__init__(model, processor, identity)
        self.protocol |= {"answer": "first token: yes, Yes against no, No", "question": CHAT_QUESTION}
        self.yes, self.no = (sorted({*map(self.first_token, words)}) for words in (("yes", "Yes"), ("no", "No")))
        if set(self.yes) & set(self.no):
            raise ValueError(f"for {identity}, yes and no begin with the same token")

    def _prompt(self, question: str) -> str:
        return super()._prompt(CHAT_QUESTION.format(question))

    def _answer(self, inputs: Any) -> list[bool]:
        logits = self.model(**inputs, logits_to_keep=1).logits[:, -1].float()
        yes, no = (logits[:, tokens].logsumexp(-1) for tokens in (self.yes, self.no))
        return (yes > no).tolist()


def load_yes_no(source: str, revision: str = "main", device: str = "cpu") -> YesNo:
    """Load a transformers model from a folder or repository of safetensors.

    BLIP and ViLT, finetuned for visual question answering, are loaded in float32; chat models with images in bfloat16
    on a GPU and float32 on a CPU.

    Args:
        source: Folder or repository.
        revision: Revision of the repository.
        device: Device of the model.

    Returns:
        The model.

    Raises:
        MissingWeights: If the model is missing.
        ValueError: If it is of another kind.
    """
    found = find(source, "a visual question answering or chat model of transformers", revision=revision)
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoModelForVisualQuestionAnswering, AutoProcessor

    try:
        kind = AutoConfig.from_pretrained(found.path, local_files_only=True).model_type
        if kind in _ANSWERING:
            model = load_pretrained(AutoModelForVisualQuestionAnswering, found.path, torch.float32)
        else:
            dtype = default_dtype(device)
            model = load_pretrained(AutoModelForImageTextToText, found.path, dtype)
        processor = AutoProcessor.from_pretrained(found.path, local_files_only=True)
    except OSError as error:
        raise MissingWeights(f"{source}: {error}") from error
    return _ANSWERING.get(kind, Chat)(model.to(device), processor, found.identity)


_ANSWERING: dict[str, type[YesNo]] = {"blip": Generated, "vilt": Classified}
