"""Captions of images by a vision-language model: the interface, and Qwen2.5-VL in transformers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

from asymflow.devices import default_dtype

MIN_PIXELS = 56 * 56
"""Smaller images are enlarged to this number of pixels, as in Qwen2.5-VL's training"""
PIXELS_PER_TOKEN = 28 * 28
"""Pixels of an image per token of the language model"""


@dataclass(frozen=True)
class Caption:
    """Caption of one image."""

    text: str
    """The caption"""
    tokens: int
    """Number of generated tokens, without the end token"""
    finished: bool
    """Whether the model ended the caption, rather than the limit of tokens"""


class Captioner(Protocol):
    """Interface of the captioners."""

    def caption(self, images: Sequence[Image.Image]) -> list[Caption]:
        """Return one caption per image, in order.

        Args:
            images: RGB images of any sizes.

        Returns:
            The captions.
        """
        ...


def load_processor(folder: str) -> Any:
    """Load the tokenizer and image processor of a local Qwen2.5-VL folder.

    Args:
        folder: The model's folder.

    Returns:
        The processor; its tokenizer pads on the left, so that generated tokens follow the prompt in every row.
    """
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    processor.tokenizer.padding_side = "left"  # so that what is written follows the prompt in every row
    return processor


def chat_prompt(processor: Any, question: str) -> str:
    """Return the prompt for one image and a question about it, in the model's chat template.

    Args:
        processor: Result of `load_processor`.
        question: The question.

    Returns:
        The prompt, up to where the answer starts.
    """
    content = [{"type": "image"}, {"type": "text", "text": question}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def processor_size(max_pixels: int) -> dict[str, int]:
    """Return the bounds on an image's number of pixels, as Qwen2.5-VL's image processor names them.

    Args:
        max_pixels: Larger images are shrunk to this number of pixels.

    Returns:
        Settings of the image processor.
    """
    return {"shortest_edge": MIN_PIXELS, "longest_edge": max_pixels}


class QwenCaptioner:
    """Qwen2.5-VL from a local folder of safetensors, in bfloat16 on a GPU and float32 on a CPU.

    Decoding is greedy, so that a rerun gives the same captions; the model's own repetition penalty applies.

    Args:
        folder: The model's folder.
        question: Question about each image.
        max_new_tokens: Limit of generated tokens per caption.
        max_pixels: Larger images are shrunk to this number of pixels.
        device: Device of the model.
    """

    def __init__(self, folder: str, question: str, max_new_tokens: int, max_pixels: int, device: str = "cpu"):
        self.processor = load_processor(folder)
        self.prompt = chat_prompt(self.processor, question)
        self.max_pixels = max_pixels
        dtype = default_dtype(device)
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            folder, dtype=dtype, local_files_only=True, use_safetensors=True
        )
        self.model = model.to(device).eval()
        self.model.generation_config.update(
            do_sample=False, temperature=None, top_p=None, top_k=None, max_new_tokens=max_new_tokens
        )

    def caption(self, images: Sequence[Image.Image]) -> list[Caption]:
        """Return one caption per image, in order.

        Args:
            images: RGB images of any sizes.

        Returns:
            The captions.
        """
        return [self._read(tokens) for tokens in self._generate(images)]

    @torch.inference_mode()
    def _generate(self, images: Sequence[Image.Image]) -> Tensor:
        """Return the token IDs (B, T) that follow the prompt; padding follows the end token of a caption."""
        inputs = self.processor(
            text=[self.prompt] * len(images),
            images=list(images),
            images_kwargs={"size": processor_size(self.max_pixels)},
            padding=True,
            return_tensors="pt",
        ).to(self.model.device)
        return self.model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]

    def _read(self, written: Tensor) -> Caption:
        """Return the caption of token IDs (T,), up to the end token."""
        ends = torch.as_tensor(self.model.generation_config.eos_token_id, device=written.device)
        ended = torch.isin(written, ends).nonzero()
        tokens = int(ended[0]) if len(ended) else len(written)
        text = self.processor.tokenizer.decode(written[:tokens], skip_special_tokens=True)
        return Caption(text, tokens, finished=bool(len(ended)))
