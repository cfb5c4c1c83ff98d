"""Gamut clamp of the denoised images (App. B.2) in none, the last or all steps: the colors, on the shipped toy.

    python benchmarks/clamp.py [--images 8] [--steps 16] [--guidance 6]

Printed per fraction of the steps that are clamped: values outside the sRGB gamut before the final decoding, the
saturation and the clipped values of the images, and the difference to the images with all steps clamped.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402

import asymflow as asymflow  # noqa: E402  # its torchvision shim must come before diffusers
from asymflow.diffusers_pipeline import AsymFlux2KleinPipeline  # noqa: E402

MODELS = Path(__file__).parents[1] / "models"
PROMPTS = [
    "an emoji of grinning face on light blue", "an emoji of strawberry on white",
    "a photo of a red flower, wide view", "a photo of grass",
]  # fmt: skip
FRACTIONS = (0.0, 0.25, 0.5, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--guidance", type=float, default=6.0)
    options = parser.parse_args()

    pipeline = AsymFlux2KleinPipeline.from_pretrained(MODELS / "toy_klein", adapter=MODELS / "toy_asymflow")
    pipeline.set_progress_bar_config(disable=True)
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(options.images)]
    found = {}
    for fraction in FRACTIONS:
        found[fraction] = pipeline(
            prompts,
            num_inference_steps=options.steps,
            guidance_scale=options.guidance,
            generator=[torch.Generator().manual_seed(i) for i in range(options.images)],
            output_type="latent",
            clamp_to_gamut=fraction,
        ).images

    reference = pipeline.space.decode(found[1.0])
    print(f"{options.images} images, {options.steps} steps, guidance {options.guidance:g}")
    print(f"{'clamped':>8}{'outside %':>11}{'saturation':>12}{'clipped %':>11}{'dB to all':>11}")
    for fraction in FRACTIONS:
        x_0 = found[fraction]
        free, shown = pipeline.space.decode(x_0, clamp=False), (pipeline.space.decode(x_0) + 1) / 2
        outside = (free.abs() > 1 + 1e-3).float().mean() * 100
        saturation = (shown.amax(1) - shown.amin(1)).mean()
        clipped = ((shown < 0.5 / 255) | (shown > 254.5 / 255)).float().mean() * 100
        error = (shown - (reference + 1) / 2).square().mean()
        decibel = f"{-10 * torch.log10(error):.1f}" if fraction < 1 else "-"
        print(f"{fraction:>8g}{outside:>11.2f}{saturation:>12.3f}{clipped:>11.2f}{decibel:>11}")


if __name__ == "__main__":
    main()
