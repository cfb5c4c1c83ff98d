import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_clip import NAME, write_tiny_clip
from tiny_detector import write_detector
from tiny_flan_t5 import write_models
from tiny_hps_v3 import write_hps_v3
from tiny_image_reward import write_image_reward
from tiny_judge import write_judge
from tiny_pick_score import write_pick_score
from tiny_vqa_models import write_vilt

from asymflow.metrics.hps_v2 import FILE as HPS_V2
from asymflow.metrics.inception_network import Inception2015
from pipelines.evaluate.scorers import INCEPTION

HEADER = "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,"
PROMPTS = 4
"""Of each benchmark"""
MODELS = Path(__file__).parents[3] / "models"


@pytest.fixture
def demo(tmp_path, held_out):
    """Return a function of changes: settings of the demo suite on the shipped toy, as a tree."""

    def make(**changes):
        return {
            "run": {"storage": str(tmp_path / "runs"), "experiment": "demo"},
            "base": str(MODELS / "toy_klein"),
            "adapter": str(MODELS / "toy_asymflow"),
            "curated": held_out,
            "prompts": {"count": 5},
            "images_per_prompt": 2,
            "sampling": {"steps": 2},
            "bootstrap": {"set_resamples": 3},
            "shown": 2,
            "leave_out": [] if "suite" in changes else ["efficientnet"],
            "resources": {"workers": 1, "batch": 4},
        } | changes

    return make


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """Return a folder with models, prompts, images and real images of all suites."""
    root = tmp_path_factory.mktemp("benchmarks")
    clip = write_tiny_clip(root / "clip")
    from safetensors.torch import load_file

    (root / "hps_v2").mkdir()
    torch.save({"state_dict": load_file(clip)}, root / "hps_v2" / HPS_V2)
    write_hps_v3(root / "hps_v3")
    write_models(root / "vqa")
    (root / "inception").mkdir()
    torch.manual_seed(0)
    torch.save(Inception2015().state_dict(), root / "inception" / INCEPTION)
    write_detector(root / "detector")
    write_vilt(root / "vilt")
    write_judge(root / "judge")
    write_pick_score(root / "pick")
    write_image_reward(root / "reward")
    weights = torch.linspace(-1, 1, 16)[None]
    torch.save({"weight": weights, "bias": torch.tensor([5.0])}, root / "aesthetic.pth")
    for folder, count, size in (("made", 4 * PROMPTS, (320, 320)), ("real", 7, (400, 320)), ("small", 1000, (32, 32))):
        (root / folder).mkdir()
        for i in range(count):
            rough = np.random.default_rng([count, i]).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(rough).resize(size, Image.Resampling.BICUBIC).save(root / folder / f"{i:04}.png")
    (root / "one_each").mkdir()
    for i in range(PROMPTS):
        (root / "one_each" / f"{i}.png").write_bytes((root / "made" / f"{i:04}.png").read_bytes())
    (root / "captions.txt").write_text("a cat\ntwo dogs\na red {bus}\nrain\n")
    asked = [{"tag": "colors", "include": [{"class": "cat", "count": 1, "color": "red"}], "prompt": "a red cat"}]
    asked += [{"tag": "counting", "include": [{"class": "dog", "count": 2}], "prompt": "two dogs"}] * (PROMPTS - 1)
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, asked)))
    rows = [f"{i},a cat {i},,{q},{q - 1},entity,whole,t,is it bright?" for i in range(PROMPTS) for q in (1, 2)]
    (root / "dpg.csv").write_text("\n".join([HEADER + "question_natural_language", *rows]))
    atoms = {"vqa_list": [["How many cats?", "two"], ["Are there cats?", "Yes"]], "skills": ["count", "object"]}
    asked = [{"prompt": f"two cats {i}", "atom_count": 2 + i // 2, **atoms} for i in range(PROMPTS)]
    shown = [{"prompt": f"a sign {i}", "text": ["open", "daily"], "category": "sign"} for i in range(PROMPTS)]
    (root / "long_text.jsonl").write_text("\n".join(map(json.dumps, shown)))
    (root / "ocr.txt").write_text("Which text is in the image?")
    points = json.dumps({"Testpoints": ["Style"], "Testpoint Description": ["oil"]}).replace('"', '""')
    lines = [f'{i},an oil painting {i},"{points}"' for i in range(PROMPTS)]
    (root / "unigenbench.csv").write_text("\n".join(["index,prompt_en,sub_dims_en", *lines]))
    (root / "points.txt").write_text("{prompt}, {testpoints}: {definitions}; {descriptions}. <score>")
    (root / "points.json").write_text(json.dumps({"Style": "how it is painted"}))
    (root / "geneval2.jsonl").write_text("\n".join(map(json.dumps, asked)))
    return root


@pytest.fixture(scope="session")
def scorers(root):
    def at(*parts):
        return str(root.joinpath(*parts))

    config = at("clip", "config", f"{NAME}.json")
    inception = {"model": at("inception")}
    return {
        "hps_v3": {"model": at("hps_v3"), "base": at("hps_v3", "base"), "template": at("hps_v3", "template.txt")},
        "hps_v2": {"model": at("hps_v2"), "architecture": config},
        "vqa_score": {
            "model": at("vqa", "t5"), "vision": at("vqa", "vision"), "tokenizer": at("vqa", "t5"),
            "template": at("vqa", "template.txt"),
        },
        "clip_score": {"model": at("clip"), "architecture": config},
        "inception": inception,
        "inception_crop": {**inception, "resize": "centre_crop"},
        "inception_as_is": {**inception, "resize": "none", "features": ["pool", "spatial", "logits"]},
        "geneval": {"model": at("detector"), "colors": at("clip"), "architecture": config},
        "dpg": {"model": at("vilt")},
        "geneval2": {"model": at("judge")},
        "judge": {"model": at("judge")},
        "oneig": {"model": at("judge")},
        "long_text": {"model": at("judge"), "template": at("ocr.txt"), "max_tokens": 8},
        "unigenbench": {
            "model": at("judge"), "template": at("points.txt"), "definitions": at("points.json"), "max_tokens": 8,
        },
        "pick_score": {"model": at("pick", "model"), "processor": at("pick", "processor")},
        "image_reward": {
            "model": at("reward"), "tokenizer": at("reward", "tokenizer"),
            "architecture": at("reward", "architecture.json"),
        },
        "aesthetic": {"model": at("aesthetic.pth"), "clip": at("clip"), "architecture": config},
        "squeeze": {"model": str(Path(__file__).parents[3] / "models/toy_klein/perceptual_squeeze.safetensors")},
    }  # fmt: skip
