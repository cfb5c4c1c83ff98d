"""Pictures to captions by a vision-language model: what every captioner does, and Qwen2.5-VL in transformers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

MIN_PIXELS = 56 * 56
"""Smaller pictures are enlarged to this many pixels, as Qwen2.5-VL was trained"""
PIXELS_A_TOKEN = 28 * 28
"""Of a picture, for the language model"""


@dataclass(frozen=True)
class Caption:
    """What the model wrote about one picture."""

    text: str
    tokens: int
    """Written, without the one that ends"""
    finished: bool
    """Ended by itself, and not at the limit of tokens"""


class Captioner(Protocol):
    """Anything that describes RGB pictures, of any sizes; one caption a picture, in their order."""

    def caption(self, images: Sequence[Image.Image]) -> list[Caption]: ...


def load_processor(folder: str) -> Any:
    """The tokenizer and picture processor of a local Qwen2.5-VL folder."""
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    processor.tokenizer.padding_side = "left"  # so that what is written follows the prompt in every row
    return processor


def chat_prompt(processor: Any, question: str) -> str:
    """One picture and a question about it in the model's chat template, up to where the answer starts."""
    content = [{"type": "image"}, {"type": "text", "text": question}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def picture_size(max_pixels: int) -> dict[str, int]:
    """Bounds of the pixels of a picture, in the words of Qwen2.5-VL's picture processor."""
    return {"shortest_edge": MIN_PIXELS, "longest_edge": max_pixels}


class QwenCaptioner:
    """Qwen2.5-VL from a local folder of safetensors, in bf16 on a GPU and float32 on a CPU.

    It always takes the likeliest token, so that a rerun writes the same; only the model's own repetition penalty
    remains of its sampling. A picture of more than `max_pixels` is made smaller for the vision tower.
    """

    def __init__(self, folder: str, question: str, max_new_tokens: int, max_pixels: int, device: str = "cpu"):
        self.processor = load_processor(folder)
        self.prompt = chat_prompt(self.processor, question)
        self.max_pixels = max_pixels
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            folder, dtype=dtype, local_files_only=True, use_safetensors=True
        )
        self.model = model.to(device).eval()
        self.model.generation_config.update(
            do_sample=False, temperature=None, top_p=None, top_k=None, max_new_tokens=max_new_tokens
        )

    def caption(self, images: Sequence[Image.Image]) -> list[Caption]:
        return [self._read(written) for written in self._write(images)]

    @torch.inference_mode()
    def _write(self, images: Sequence[Image.Image]) -> Tensor:
        """Token IDs (B, T) that follow the prompt; behind the one that ends a caption stands padding."""
        inputs = self.processor(
            text=[self.prompt] * len(images),
            images=list(images),
            images_kwargs={"size": picture_size(self.max_pixels)},
            padding=True,
            return_tensors="pt",
        ).to(self.model.device)
        return self.model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]

    def _read(self, written: Tensor) -> Caption:
        """Token IDs (T) -> the caption, up to the token that ends it."""
        ends = torch.as_tensor(self.model.generation_config.eos_token_id, device=written.device)
        ended = torch.isin(written, ends).nonzero()
        tokens = int(ended[0]) if len(ended) else len(written)
        text = self.processor.tokenizer.decode(written[:tokens], skip_special_tokens=True)
        return Caption(text, tokens, finished=bool(len(ended)))
