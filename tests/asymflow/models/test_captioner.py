import random
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
import torch
from captioner_fixture import write_captioner
from PIL import Image

from asymflow.models.captioner import MIN_PIXELS, Caption, QwenCaptioner, chat_prompt, load_processor
from asymflow.models.captioner_vllm import VllmCaptioner

QUESTION = "What is here?"
SIZES = ((64, 64), (200, 96), (96, 200), (320, 240))


def picture(seed, width=64, height=64):
    return Image.frombytes("RGB", (width, height), random.Random(seed).randbytes(3 * width * height))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(write_captioner(tmp_path_factory.mktemp("models") / "qwen"))


@pytest.fixture(scope="module")
def captioner(folder):
    return QwenCaptioner(folder, QUESTION, max_new_tokens=16, max_pixels=200 * 200)


@pytest.fixture
def inputs_seen(captioner, monkeypatch):
    """What the model is called with, a dict a call."""
    seen, generate = [], captioner.model.generate
    monkeypatch.setattr(captioner.model, "generate", lambda **inputs: seen.append(inputs) or generate(**inputs))
    return seen


def test_captions_depend_on_the_image_and_not_on_the_batch(captioner, inputs_seen):
    images = [picture(i, *size) for i, size in enumerate(SIZES)]
    together = captioner.caption(images)
    assert together == [captioner.caption([image])[0] for image in images]
    assert len({c.text for c in together}) == len(images)
    mask = inputs_seen[0]["attention_mask"]
    assert mask[:, -1].all() and not mask[:, 0].all()  # padded, and on the left


def test_a_rerun_writes_the_same(captioner, folder):
    images = [picture(i) for i in range(4)]
    again = QwenCaptioner(folder, QUESTION, max_new_tokens=16, max_pixels=200 * 200)
    assert captioner.caption(images) == again.caption(images)
    assert not again.model.generation_config.do_sample and again.model.generation_config.repetition_penalty == 1.05


def test_weights_are_float32_on_a_cpu(captioner):
    assert {p.dtype for p in captioner.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("size", [*SIZES, (1024, 1024), (20, 20)])
def test_images_are_downscaled_to_the_pixel_limit(captioner, inputs_seen, size):
    captioner.caption([picture(0, *size)])
    _, rows, columns = inputs_seen[0]["image_grid_thw"][0].tolist()
    assert len(inputs_seen[0]["pixel_values"]) == rows * columns
    assert MIN_PIXELS <= rows * columns * 14 * 14 <= 200 * 200
    tokens = inputs_seen[0]["input_ids"] == captioner.model.config.image_token_id
    assert int(tokens.sum()) == rows * columns // 4


def test_the_prompt_is_the_models_chat(folder):
    assert chat_prompt(load_processor(folder), "Why?") == (
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Why?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_caption_ends_before_the_token_that_ends_it_or_at_the_limit(captioner, monkeypatch):
    images = [picture(i) for i in range(3)]
    written = captioner._generate(images)
    end = int(written[0, 2])  # let this token end captions
    monkeypatch.setattr(captioner.model.generation_config, "eos_token_id", [end])
    first = captioner.caption(images)[0]
    before = written[0].tolist().index(end)
    expected = captioner.processor.tokenizer.decode(written[0, :before], skip_special_tokens=True)
    assert first == Caption(expected, before, finished=True)
    absent = next(i for i in range(len(captioner.processor.tokenizer)) if i not in written)
    monkeypatch.setattr(captioner.model.generation_config, "eos_token_id", [absent])
    assert [(c.tokens, c.finished) for c in captioner.caption(images)] == [(16, False)] * 3


def test_only_safetensors_are_loaded(folder, tmp_path):
    model = QwenCaptioner(folder, QUESTION, 1, MIN_PIXELS).model
    model.config.save_pretrained(tmp_path)
    load_processor(folder).save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        QwenCaptioner(str(tmp_path), QUESTION, 1, MIN_PIXELS)


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


def test_vllm_gets_the_same_request(vllm, folder):
    captioner = VllmCaptioner(folder, QUESTION, max_new_tokens=20, max_pixels=28 * 28 * 50, gpus=2)
    captioner.engine.reasons = {30: "length"}
    images = [picture(0, width) for width in (10, 20, 30)]
    assert captioner.caption(images) == [
        Caption("10 wide.", 7, finished=True),
        Caption("20 wide.", 7, finished=True),
        Caption("30 wide.", 20, finished=False),
    ]
    ((prompts, sampling, use_tqdm),) = captioner.engine.calls
    processor = load_processor(folder)
    prompt = chat_prompt(processor, QUESTION)
    assert prompts == [{"prompt": prompt, "multi_modal_data": {"image": image}} for image in images]
    assert vars(sampling) == {"temperature": 0.0, "repetition_penalty": 1.05, "max_tokens": 20} and not use_tqdm
    length = len(processor(text=[prompt], images=[picture(0, 140, 280)])["input_ids"][0]) + 20
    assert captioner.engine.options == {
        "model": folder,
        "load_format": "safetensors",
        "dtype": "bfloat16",
        "tensor_parallel_size": 2,
        "max_model_len": length + 1,  # 50 tokens of pixels; the placeholder stands for one of them
        "limit_mm_per_prompt": {"image": 1, "video": 0},
        "mm_processor_kwargs": {"size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 50}},
        "seed": 0,
    }


def test_an_aborted_vllm_request_is_an_error(vllm, folder):
    captioner = VllmCaptioner(folder, QUESTION, max_new_tokens=20, max_pixels=MIN_PIXELS)
    captioner.engine.reasons = {64: "abort"}
    with pytest.raises(RuntimeError, match="aborted a caption"):
        captioner.caption([picture(0)])
