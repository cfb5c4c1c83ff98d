"""Questions about images for a vision-language chat model: probabilities of answers, or a written text.

Questions of equal length are evaluated together, so that there is no padding and an answer does not depend on its
batch. (BLIP's decoder would attend to padding.)
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from asymflow.devices import default_dtype
from asymflow.metrics.arguments import check_images, to_pil_images
from asymflow.metrics.weights import MissingWeights, find

_MAX_BATCH = 8  # images per forward pass


class QuestionBatches:
    """Model and processor that take one question per image, in batches of equal length.

    Args:
        model: The model.
        processor: Its processor.
        identity: Name of the weights in the protocol.
    """

    protocol: dict[str, Any]

    def __init__(self, model: Any, processor: Any, identity: str):
        self.model, self.processor = model.eval(), processor
        self.protocol = {
            "model": identity,
            "class": type(model).__name__,
            "precision": str(model.dtype).removeprefix("torch."),
            "pictures": type(processor.image_processor).__name__,
        }

    def batches(self, images: Tensor, questions: Sequence[str]) -> Iterator[tuple[list[int], Any]]:
        """Yield the model's inputs for questions of equal length.

        Args:
            images: sRGB images, uint8 (B, 3, H, W).
            questions: One question per image.

        Yields:
            Indices of the questions, and the inputs.

        Raises:
            ValueError: For other images, another number of questions, or a question that is empty or too long.
        """
        check_images(images)
        if len(questions) != len(images) or not all(question.strip() for question in questions):
            raise ValueError(f"{len(images)} images need as many questions, none of them empty; got {len(questions)}")
        pil_images = to_pil_images(images)
        prompts = [self._prompt(question) for question in questions]
        for indices in self._groups(prompts):
            # Images are nested by prompt: some chat models' processors require it.
            inputs = self.processor(
                images=[self._prepare(pil_images[i]) for i in indices],
                text=[prompts[i] for i in indices],
                return_tensors="pt",
            )
            yield indices, inputs.to(self.model.device, self.model.dtype)

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


class ChatModel(QuestionBatches):
    """Chat model, such as Qwen3-VL: one user turn with the image, then the question, in the model's chat template.

    Decoding is greedy under the model's own repetition penalty.

    Args:
        model: The model.
        processor: Its processor.
        identity: Name of the weights in the protocol.

    Raises:
        ValueError: If the model has no chat template.
    """

    def __init__(self, model: Any, processor: Any, identity: str):
        super().__init__(model, processor, identity)
        if not (getattr(processor, "chat_template", None) or processor.tokenizer.chat_template):
            raise ValueError(f"{identity} has no chat template: it is not a chat model")

    @torch.inference_mode()
    def answer_probabilities(
        self, images: Tensor, questions: Sequence[str], answers: Sequence[Sequence[str]]
    ) -> tuple[list[float], list[str]]:
        """Return the probability that each reply begins with one of the accepted answers.

        It is the sum, over the answers, of the softmax probability of the answer's first token. Answers that share a
        first token count as often as they occur, as in GenEval 2's reference.

        Args:
            images: sRGB images, uint8 (B, 3, H, W).
            questions: One question per image.
            answers: Accepted answers to each question.

        Returns:
            The sums (B), and the text of each most probable first token.

        Raises:
            ValueError: As in `batches`; or if a question has no accepted answer.
        """
        if len(answers) != len(questions) or not all(answers):
            raise ValueError(f"{len(questions)} questions need at least one accepted answer each")
        tokens = [[self.first_token(answer) for answer in accepted] for accepted in answers]
        found, words = [0.0] * len(questions), [""] * len(questions)
        for indices, inputs in self.batches(images, questions):
            (scores,) = self._generate(inputs, 1, output_scores=True, return_dict_in_generate=True).scores
            odds = scores.float().softmax(-1).cpu()
            best = self.processor.tokenizer.batch_decode(odds.argmax(-1)[:, None])
            for i, row, word in zip(indices, odds, best, strict=True):
                found[i], words[i] = float(row[tokens[i]].double().sum()), word
        return found, words

    @torch.inference_mode()
    def write(self, images: Tensor, questions: Sequence[str], max_tokens: int) -> list[str]:
        """Return the model's replies.

        Args:
            images: sRGB images, uint8 (B, 3, H, W).
            questions: One question per image.
            max_tokens: Limit of generated tokens per reply.

        Returns:
            The replies, without special tokens.

        Raises:
            ValueError: As in `batches`.
        """
        replies = [""] * len(questions)
        for indices, inputs in self.batches(images, questions):
            written = self._generate(inputs, max_tokens)[:, inputs["input_ids"].shape[1] :]
            texts = self.processor.tokenizer.batch_decode(written, skip_special_tokens=True)
            for i, text in zip(indices, texts, strict=True):
                replies[i] = text
        return replies

    def first_token(self, text: str) -> int:
        """Return the first token of a text.

        Args:
            text: The text.

        Returns:
            The token's ID.
        """
        return self.processor.tokenizer.encode(text, add_special_tokens=False)[0]

    def _generate(self, inputs: Any, max_tokens: int, **options: Any) -> Any:
        greedy = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}
        return self.model.generate(**inputs, **greedy, max_new_tokens=max_tokens, **options)

    def _prompt(self, question: str) -> str:
        from asymflow.models.captioner import chat_prompt

        return chat_prompt(self.processor, question)

    def _prepare(self, image: Image.Image) -> Any:
        return [image]


def load_chat_model(source: str, needed: str, revision: str = "main", device: str = "cpu") -> ChatModel:
    """Load a vision-language chat model of transformers, bfloat16 on a GPU and float32 on a CPU.

    Args:
        source: Folder or repository of safetensors.
        needed: Description of the model and its origin, for errors.
        revision: Revision of the repository.
        device: Device of the model.

    Returns:
        The model.

    Raises:
        MissingWeights: If the model is missing.
        ValueError: If it is not a chat model.
    """
    found = find(source, needed, revision=revision)
    from transformers import AutoModelForImageTextToText, AutoProcessor

    try:
        model = load_pretrained(AutoModelForImageTextToText, found.path, default_dtype(device))
        processor = AutoProcessor.from_pretrained(found.path, local_files_only=True)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise MissingWeights(f"{source} cannot be loaded: {reason}; needed is {needed}") from error
    return ChatModel(model.to(device), processor, found.identity)


def load_pretrained(auto: Any, path: Path, dtype: torch.dtype) -> Any:
    """Load a model of transformers from a local folder of safetensors.

    Args:
        auto: Class of the model.
        path: The folder.
        dtype: Type of the model.

    Returns:
        The model.
    """
    return auto.from_pretrained(path, dtype=dtype, local_files_only=True, use_safetensors=True)
