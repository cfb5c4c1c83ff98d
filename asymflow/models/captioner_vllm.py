"""Qwen2.5-VL in vLLM, which batches requests continuously: many times the throughput, the same prompt and limits."""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from asymflow.models.captioner import PIXELS_PER_TOKEN, Caption, chat_prompt, load_processor, processor_size


class VllmCaptioner:
    """Captioner on whole GPUs of one node, from a local folder of safetensors, in bfloat16.

    Decoding is greedy under the model's own repetition penalty, as in QwenCaptioner. vLLM's batches depend on timing,
    so the last digits of a rerun may differ.

    Args:
        folder: The model's folder.
        question: Question about each image.
        max_new_tokens: Limit of generated tokens per caption.
        max_pixels: Larger images are shrunk to this number of pixels.
        gpus: Number of GPUs that share the model.
    """

    def __init__(self, folder: str, question: str, max_new_tokens: int, max_pixels: int, gpus: int = 1):
        from vllm import LLM, SamplingParams

        processor = load_processor(folder)
        self.prompt = chat_prompt(processor, question)
        prompt_tokens = len(processor.tokenizer(self.prompt)["input_ids"])
        self.engine = LLM(
            model=folder,
            load_format="safetensors",
            dtype="bfloat16",
            tensor_parallel_size=gpus,
            max_model_len=prompt_tokens + max_pixels // PIXELS_PER_TOKEN + max_new_tokens,
            limit_mm_per_prompt={"image": 1, "video": 0},
            mm_processor_kwargs={"size": processor_size(max_pixels)},
            seed=0,
        )
        penalty = self.engine.get_default_sampling_params().repetition_penalty
        self.sampling = SamplingParams(temperature=0.0, repetition_penalty=penalty, max_tokens=max_new_tokens)

    def caption(self, images: Sequence[Image.Image]) -> list[Caption]:
        """Return one caption per image, in order.

        Args:
            images: RGB images of any sizes.

        Returns:
            The captions.

        Raises:
            RuntimeError: If the engine aborts a caption.
        """
        prompts = [{"prompt": self.prompt, "multi_modal_data": {"image": image}} for image in images]
        answers = self.engine.generate(prompts, self.sampling, use_tqdm=False)
        return [_read(answer.outputs[0]) for answer in answers]


def _read(output: Any) -> Caption:
    """Return the caption of a vllm.CompletionOutput, whose token IDs include the end token and whose text does not."""
    if output.finish_reason not in ("stop", "length"):
        raise RuntimeError(f"vLLM aborted a caption: finish_reason is {output.finish_reason!r}")
    finished = output.finish_reason == "stop"
    return Caption(output.text, len(output.token_ids) - finished, finished)
