"""The shipped toy, and how tests sample from it."""

from pathlib import Path

import torch

from asymflow.models.flux2 import image_positions, text_positions

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


def velocity(model) -> torch.Tensor:
    """Of random tokens, by the toy's transformer or one made of it"""
    generator = torch.Generator().manual_seed(0)
    x_t, text = torch.randn(1, 64, 48, generator=generator), torch.randn(1, 7, 96, generator=generator)
    positions = image_positions((8, 8)), text_positions(7)
    with torch.no_grad():
        return model(x_t, text, torch.tensor([0.6]), *positions, return_dict=False)[0]


def relative_error(model, merged) -> float:
    expected = velocity(merged)
    return float((velocity(model) - expected).norm() / expected.norm())
