"""Yes/no questions about images, by any visual question answering or chat model of transformers.

Questions of equal length are evaluated together, so that there is no padding and an answer does not depend on its
batch. (BLIP's decoder would attend to padding.)
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from asymflow.devices import default_dtype
from asymflow.metrics.arguments import check_images
from asymflow.metrics.weights import MissingWeights, find

CHAT_QUESTION = "{} Answer yes or no."
_MAX_BATCH = 8  # images per forward pass
_MAX_ANSWER = 10  # tokens


def is_yes(answer: str) -> bool:
    """Return whether an answer is the one word yes, the benchmark's rule.

    Args:
        answer: The answer.

    Returns:
        True for yes, in any case and with spaces around it.
    """
    return answer.strip().lower() == "yes"


class YesNo(ABC):
    """Answer one yes/no question per image. Load a subclass with `load_yes_no`.

    Args:
        model: The model.
        processor: Its processor.
        identity: Name of the weights in the protocol.
    """

    protocol: dict[str, Any]

    def __init__(self, model: Any, processor: Any, identity: str):
        self.model, self.processor = model.eval(), processor
        self.protocol = {
            "metric": "yes_no",
            "model": identity,
            "class": type(model).__name__,
            "precision": str(model.dtype).removeprefix("torch."),
            "pictures": type(processor.image_processor).__name__,
        }

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
        check_images(images)
        if len(questions) != len(images) or not all(question.strip() for question in questions):
            raise ValueError(f"{len(images)} images need as many questions, none of them empty; got {len(questions)}")
        pil_images = [Image.fromarray(image.permute(1, 2, 0).cpu().numpy()) for image in images]
        prompts = [self._prompt(question) for question in questions]
        found = [False] * len(images)
        with torch.inference_mode():
            for indices in self._groups(prompts):
                # Images are nested by prompt: some chat models' processors require it.
                inputs = self.processor(
                    images=[self._prepare(pil_images[i]) for i in indices],
                    text=[prompts[i] for i in indices],
                    return_tensors="pt",
                )
                inputs = inputs.to(self.model.device, self.model.dtype)
                for i, yes in zip(indices, self._answer(inputs), strict=True):
                    found[i] = yes
        return found

    def _groups(self, prompts: Sequence[str]) -> Iterator[list[int]]:
        indices: dict[int, list[int]] = {}
        for i, prompt in enumerate(prompts):
            length = len(self.processor.tokenizer(prompt)["input_ids"])
            if length > self._longest():
                raise ValueError(f"{prompt!r} is {length} tokens; the model reads {self._longest()}")
            indices.setdefault(length, []).append(i)
        for same in indices.values():
            yield from (same[start : start + _MAX_BATCH] for start in range(0, len(same), _MAX_BATCH))

    def _longest(self) -> int:
        return int(self.model.config.get_text_config().max_position_embeddings)

    def _prompt(self, question: str) -> str:
        return question

    def _prepare(self, image: Image.Image) -> Any:
        return image

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


class Chat(YesNo):
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
        if not (getattr(processor, "chat_template", None) or processor.tokenizer.chat_template):
            raise ValueError(f"{identity} has no chat template: it is not a chat model")
        self.yes, self.no = self._first("yes", "Yes"), self._first("no", "No")
        if set(self.yes) & set(self.no):
            raise ValueError(f"for {identity}, yes and no begin with the same token")

    def _first(self, *words: str) -> list[int]:
        return sorted({self.processor.tokenizer.encode(word, add_special_tokens=False)[0] for word in words})

    def _prompt(self, question: str) -> str:
        from asymflow.models.captioner import chat_prompt

        return chat_prompt(self.processor, CHAT_QUESTION.format(question))

    def _prepare(self, image: Image.Image) -> Any:
        return [image]

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
            model = _pretrained(AutoModelForVisualQuestionAnswering, found.path, torch.float32)
        else:
            dtype = default_dtype(device)
            model = _pretrained(AutoModelForImageTextToText, found.path, dtype)
        processor = AutoProcessor.from_pretrained(found.path, local_files_only=True)
    except OSError as error:
        raise MissingWeights(f"{source}: {error}") from error
    return _ANSWERING.get(kind, Chat)(model.to(device), processor, found.identity)


def _pretrained(auto: Any, path: Path, dtype: torch.dtype) -> Any:
    return auto.from_pretrained(path, dtype=dtype, local_files_only=True, use_safetensors=True)


_ANSWERING: dict[str, type[YesNo]] = {"blip": Generated, "vilt": Classified}
