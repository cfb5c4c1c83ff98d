import random
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
from PIL import Image

from asymflow.models.captioner import MIN_PIXELS, Caption, chat_prompt, load_processor
from asymflow.models.captioner_vllm import VllmCaptioner

QUESTION = "What is here?"


def picture(seed, width=64, height=64):
    return Image.frombytes("RGB", (width, height), random.Random(seed).randbytes(3 * width * height))


class SamplingParams:
    """With the names and defaults of vLLM's."""

    def __init__(self, *, temperature=1.0, repetition_penalty=1.0, max_tokens=16):
        self.temperature, self.repetition_penalty, self.max_tokens = temperature, repetition_penalty, max_tokens


class LLM:
    """Takes what vLLM's takes, and answers as it does: token IDs with the one that ended them, text without."""

    def __init__(
        self, model, *, load_format, dtype, tensor_parallel_size, max_model_len, limit_mm_per_prompt,
        mm_processor_kwargs, seed,
    ):  # fmt: skip
        self.options = {k: v for k, v in locals().items() if k != "self"}
        self.reasons, self.calls = {}, []

    def get_default_sampling_params(self):
        return SamplingParams(temperature=1e-6, repetition_penalty=1.05)

    def generate(self, prompts, sampling_params=None, *, use_tqdm=True):
        self.calls.append((prompts, sampling_params, use_tqdm))
        answers = []
        for prompt in prompts:
            width = prompt["multi_modal_data"]["image"].width
            reason = self.reasons.get(width, "stop")
            ids = [5] * (sampling_params.max_tokens if reason == "length" else 8)
            completion = SimpleNamespace(text=f"{width} wide.", token_ids=ids, finish_reason=reason)
            answers.append(SimpleNamespace(outputs=[completion]))
        return answers


@pytest.fixture
def vllm(monkeypatch):
    module = ModuleType("vllm")
    module.LLM, module.SamplingParams, module.__spec__ = LLM, SamplingParams, ModuleSpec("vllm", None)
    monkeypatch.setitem(sys.modules, "vllm", module)


def test_vllm_gets_the_same_request(vllm, captioner_folder):
    captioner = VllmCaptioner(captioner_folder, QUESTION, max_new_tokens=20, max_pixels=28 * 28 * 50, gpus=2)
    captioner.engine.reasons = {30: "length"}
    images = [picture(0, width) for width in (10, 20, 30)]
    assert captioner.caption(images) == [
        Caption("10 wide.", 7, finished=True),
        Caption("20 wide.", 7, finished=True),
        Caption("30 wide.", 20, finished=False),
    ]
    ((prompts, sampling, use_tqdm),) = captioner.engine.calls
    processor = load_processor(captioner_folder)
    prompt = chat_prompt(processor, QUESTION)
    assert prompts == [{"prompt": prompt, "multi_modal_data": {"image": image}} for image in images]
    assert vars(sampling) == {"temperature": 0.0, "repetition_penalty": 1.05, "max_tokens": 20}
    assert not use_tqdm
    length = len(processor(text=[prompt], images=[picture(0, 140, 280)])["input_ids"][0]) + 20
    assert captioner.engine.options == {
        "model": captioner_folder,
        "load_format": "safetensors",
        "dtype": "bfloat16",
        "tensor_parallel_size": 2,
        "max_model_len": length + 1,  # 50 tokens of pixels; the placeholder stands for one of them
        "limit_mm_per_prompt": {"image": 1, "video": 0},
        "mm_processor_kwargs": {"size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 50}},
        "seed": 0,
    }


def test_an_aborted_vllm_request_is_an_error(vllm, captioner_folder):
    captioner = VllmCaptioner(captioner_folder, QUESTION, max_new_tokens=20, max_pixels=MIN_PIXELS)
    captioner.engine.reasons = {64: "abort"}
    with pytest.raises(RuntimeError, match="aborted a caption"):
        captioner.caption([picture(0)])
