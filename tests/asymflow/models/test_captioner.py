import random

import pytest
import torch
from PIL import Image

from asymflow.models.captioner import MIN_PIXELS, Caption, QwenCaptioner, chat_prompt, load_processor

QUESTION = "What is here?"
SIZES = ((64, 64), (200, 96), (96, 200), (320, 240))


def picture(seed, width=64, height=64):
    return Image.frombytes("RGB", (width, height), random.Random(seed).randbytes(3 * width * height))


@pytest.fixture(scope="module")
def captioner(captioner_folder):
    return QwenCaptioner(captioner_folder, QUESTION, max_new_tokens=16, max_pixels=200 * 200)


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
    assert mask[:, -1].all()
    assert not mask[:, 0].all()


def test_a_rerun_writes_the_same(captioner, captioner_folder):
    images = [picture(i) for i in range(4)]
    again = QwenCaptioner(captioner_folder, QUESTION, max_new_tokens=16, max_pixels=200 * 200)
    assert captioner.caption(images) == again.caption(images)
    assert not again.model.generation_config.do_sample
    assert again.model.generation_config.repetition_penalty == 1.05


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


def test_the_prompt_is_the_models_chat(captioner_folder):
    assert chat_prompt(load_processor(captioner_folder), "Why?") == (
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


def test_only_safetensors_are_loaded(captioner_folder, tmp_path):
    model = QwenCaptioner(captioner_folder, QUESTION, 1, MIN_PIXELS).model
    model.config.save_pretrained(tmp_path)
    load_processor(captioner_folder).save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        QwenCaptioner(str(tmp_path), QUESTION, 1, MIN_PIXELS)
