"""The shipped toy, and how tests sample from it."""

from pathlib import Path

import torch

MODELS = Path(__file__).parents[2] / "models"
BASE, ADAPTER = MODELS / "toy_klein", MODELS / "toy_asymflow"
PROMPTS = ["an emoji of strawberry on white", "a photo of a red flower, wide view", "a photo of grass"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(count=1, height=64, width=64, seed=0):
    return torch.randn(count, 3, height, width, generator=seeded(seed))


def samples(pipe, prompt=PROMPTS[0], **options):
    """(B, 3, H, W) in [0, 1]"""
    options = {"latents": noise(), "num_inference_steps": 3, "output_type": "pt", **options}
    return pipe(prompt, **options).images


def largest_difference(a, b):
    return float((a - b).abs().max())
