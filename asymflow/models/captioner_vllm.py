"""Qwen2.5-VL in vLLM, which batches by itself: many times the captions an hour on a GPU, the same prompt and bounds."""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from asymflow.models.captioner import PIXELS_A_TOKEN, Caption, chat_prompt, load_processor, picture_size


class VllmCaptioner:
    """A Captioner on whole GPUs of one node, from a local folder of safetensors, in bf16.

    It always takes the likeliest token, as QwenCaptioner does, under the model's own repetition penalty. vLLM puts
    together what it computes at once as requests come and go, so the last digits of a rerun may differ.
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
            max_model_len=prompt_tokens + max_pixels // PIXELS_A_TOKEN + max_new_tokens,
            limit_mm_per_prompt={"image": 1, "video": 0},
            mm_processor_kwargs={"size": picture_size(max_pixels)},
            seed=0,
        )
        penalty = self.engine.get_default_sampling_params().repetition_penalty
        self.sampling = SamplingParams(temperature=0.0, repetition_penalty=penalty, max_tokens=max_new_tokens)

    def caption(self, images: Sequence[Image.Image]) -> list[Caption]:
        """RuntimeError where the engine gave a picture up."""
        prompts = [{"prompt": self.prompt, "multi_modal_data": {"image": image}} for image in images]
        answers = self.engine.generate(prompts, self.sampling, use_tqdm=False)
        return [_read(answer.outputs[0]) for answer in answers]


def _read(output: Any) -> Caption:
    """A vllm.CompletionOutput; its token IDs hold the one that ended it, its text does not."""
    if output.finish_reason not in ("stop", "length"):
        raise RuntimeError(f"vLLM gave a caption up: {output.finish_reason}")
    finished = output.finish_reason == "stop"
    return Caption(output.text, len(output.token_ids) - finished, finished)
