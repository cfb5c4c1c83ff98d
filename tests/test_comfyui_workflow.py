"""The ComfyUI workflow of the docs: nodes, links and values are consistent with the exported file and the defaults.

The nodes' inputs and outputs are those of ComfyUI and of the nodes that ComfyUI-piFlow adds.
"""

import json
from pathlib import Path

import pytest

from asymflow.adapters import SamplingDefaults
from asymflow.adapters.single_file import FP8
from asymflow.oklab import RELEASED

WORKFLOW = json.loads((Path(__file__).parents[1] / "docs" / "comfyui_text_to_image.json").read_text())
NODES = {
    "Load AsymFlow Model": ({"model_name": str, "weight_dtype": str}, ["MODEL"]),
    "CLIPLoader": ({"clip_name": str, "type": str, "device": str}, ["CLIP"]),
    "CLIPTextEncode": ({"text": str, "clip": "CLIP"}, ["CONDITIONING"]),
    "Oklab Color Encoder": (
        {"use_affine_norm": bool, "mean_l": float, "mean_a": float, "mean_b": float, "std": float}, ["VAE"],
    ),
    "APG": ({"model": "MODEL", "eta": float, "norm_threshold": float, "momentum": float}, ["MODEL"]),
    "Clamp Denoised": ({"model": "MODEL", "vae": "VAE"}, ["MODEL"]),
    "CFGGuider": (
        {"model": "MODEL", "positive": "CONDITIONING", "negative": "CONDITIONING", "cfg": float}, ["GUIDER"],
    ),
    "EmptyImage": ({"width": int, "height": int, "batch_size": int, "color": int}, ["IMAGE"]),
    "VAEEncode": ({"pixels": "IMAGE", "vae": "VAE"}, ["LATENT"]),
    "RandomNoise": ({"noise_seed": int}, ["NOISE"]),
    "KSamplerSelect": ({"sampler_name": str}, ["SAMPLER"]),
    "AsymFlux2Scheduler": ({"steps": int, "width": int, "height": int}, ["SIGMAS"]),
    "SamplerCustomAdvanced": (
        {"noise": "NOISE", "guider": "GUIDER", "sampler": "SAMPLER", "sigmas": "SIGMAS", "latent_image": "LATENT"},
        ["LATENT", "LATENT"],
    ),
    "VAEDecode": ({"samples": "LATENT", "vae": "VAE"}, ["IMAGE"]),
    "SaveImage": ({"images": "IMAGE", "filename_prefix": str}, []),
}  # fmt: skip


@pytest.mark.parametrize("id", WORKFLOW)
def test_each_input_is_a_value_or_a_link_of_its_type(id):
    node = WORKFLOW[id]
    expected, _ = NODES[node["class_type"]]
    assert node["inputs"].keys() == expected.keys()
    for name, kind in expected.items():
        value = node["inputs"][name]
        if isinstance(kind, type):
            assert type(value) is kind, name
        else:
            source, output = value
            assert NODES[WORKFLOW[source]["class_type"]][1][output] == kind, name


def test_every_node_reaches_the_one_that_saves_the_image():
    reached, waiting = set(), [id for id, node in WORKFLOW.items() if node["class_type"] == "SaveImage"]
    assert len(waiting) == 1
    while waiting:
        reached.add(id := waiting.pop())
        waiting += [value[0] for value in WORKFLOW[id]["inputs"].values() if isinstance(value, list)]
    assert reached == WORKFLOW.keys()


def test_its_values_are_the_released_models_defaults():
    values = {name: v for node in WORKFLOW.values() for name, v in node["inputs"].items() if not isinstance(v, list)}
    defaults = SamplingDefaults()
    assert values["model_name"] == FP8
    assert (values["steps"], values["cfg"]) == (defaults.num_inference_steps, defaults.guidance_scale)
    assert (values["height"], values["width"]) == (defaults.height, defaults.width)
    assert values["eta"] == 1 - defaults.orthogonal_guidance
    assert tuple(values[f"mean_{axis}"] for axis in "lab") == tuple(RELEASED.mean)
    assert values["std"] == RELEASED.std
