"""Image-to-image, inpainting and outpainting by the shipped toy, beside the latent pipeline of diffusers.

    python benchmarks/editing.py [--out docs/editing.png]

Writes the figure of docs/editing.md, and prints how many pixels outside the mask differ from the input. The inputs are
samples of the toy. `Flux2KleinInpaintPipeline` also conditions on the input as a reference image, for which the toy was
not trained. diffusers has no image-to-image pipeline with a strength for FLUX.2 klein; here it inpaints everything.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image, ImageDraw  # noqa: E402

import asymflow as asymflow  # noqa: E402  # its torchvision shim must come before diffusers
from asymflow.diffusers_pipeline import (  # noqa: E402
    AsymFlux2KleinImg2ImgPipeline,
    AsymFlux2KleinInpaintPipeline,
    AsymFlux2KleinPipeline,
    expand_canvas,
)
from pipelines.viz.image_grid import side_by_side  # noqa: E402

from diffusers import Flux2KleinInpaintPipeline  # noqa: E402  # isort: skip

MODELS = Path(__file__).parents[1] / "models"
SIDE = 64
"""Height and width of the images"""
SMILE, BERRY = "an emoji of grinning face on light blue", "an emoji of strawberry on white"
FLOWER, GRASS = "a photo of a red flower, wide view", "a photo of grass"


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ellipse(*box: int, blur: int = 0) -> Image.Image:
    """A mask with a soft edge of about `blur` pixels."""
    mask = Image.new("L", (SIDE, SIDE))
    for ring in range(blur + 1):
        inner = (box[0] + ring, box[1] + ring, box[2] - ring, box[3] - ring)
        ImageDraw.Draw(mask).ellipse(inner, fill=255 * (ring + 1) // (blur + 1))
    return mask


def differing(found: Image.Image, image: Image.Image, mask: Image.Image) -> tuple[int, int, int]:
    """Pixels outside the mask that differ, all of them, and the largest difference of a byte."""
    outside = np.asarray(mask) == 0
    difference = np.abs(np.asarray(found, int) - np.asarray(image, int)).max(axis=-1)[outside]
    return int((difference > 0).sum()), int(outside.sum()), int(difference.max(initial=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="docs/editing.png")
    options = parser.parse_args()

    base, adapter = MODELS / "toy_klein", MODELS / "toy_asymflow"
    sample = AsymFlux2KleinPipeline.from_pretrained(base, adapter=adapter)
    change = AsymFlux2KleinImg2ImgPipeline.from_pipe(sample)
    inpaint = AsymFlux2KleinInpaintPipeline.from_pipe(sample)
    latent = Flux2KleinInpaintPipeline.from_pretrained(base, dtype=torch.float32)
    for pipeline in (sample, change, inpaint, latent):
        pipeline.set_progress_bar_config(disable=True)

    def made(prompt: str) -> Image.Image:
        return sample(prompt, height=SIDE, width=SIDE, generator=seeded(0)).images[0]

    flower, smile = made(FLOWER), made(SMILE)
    wider, added = expand_canvas(smile.crop((16, 0, 48, SIDE)), left=16, right=16, overlap=4)
    everything = Image.new("L", (SIDE, SIDE), 255)
    cases = [
        ("image-to-image, strength 0.5", SMILE, made(BERRY), everything, 0.5),
        ("image-to-image, strength 0.8", SMILE, made(BERRY), everything, 0.8),
        ("inpainting", GRASS, flower, ellipse(10, 10, 53, 53), 1.0),
        ("inpainting, soft mask", FLOWER, made(GRASS), ellipse(2, 2, 61, 61, blur=10), 1.0),
        ("inpainting, padding_mask_crop 8", SMILE, smile, ellipse(15, 34, 48, 51), 0.8),
        ("outpainting", SMILE, wider, added, 1.0),
    ]
    columns: dict[str, list[Image.Image]] = {"input": [], "mask": [], "AsymFlow": [], "latent": []}
    print(f"{'':<34}{'pixels outside':>15}{'differ':>8}{'largest':>9}{'latent: differ':>16}{'largest':>9}")
    for name, prompt, image, mask, strength in cases:
        common = {"prompt": prompt, "image": image, "strength": strength, "generator": seeded(1)}
        crop = {"padding_mask_crop": 8} if "crop" in name else {}
        if mask is everything:
            found = change(**common).images[0]
        else:
            found = inpaint(**common, mask_image=mask, **crop).images[0]
        other = latent(
            **{**common, "generator": seeded(1)}, mask_image=mask, **crop, height=image.height, width=image.width,
            num_inference_steps=sample.defaults.num_inference_steps, guidance_scale=sample.defaults.guidance_scale,
        ).images[0]  # fmt: skip
        for column, shown in zip(columns.values(), (image, mask.convert("RGB"), found, other), strict=True):
            column.append(shown)
        own, theirs = differing(found, image, mask), differing(other, image, mask)
        print(f"{name:<34}{own[1]:>15}{own[0]:>8}{own[2]:>9}{theirs[0]:>16}{theirs[2]:>9}")
    captions = [f"{name}: {prompt}" for name, prompt, *_ in cases]
    side_by_side(columns, captions, scale=2).save(options.out, optimize=True)
    print(options.out)


if __name__ == "__main__":
    main()
