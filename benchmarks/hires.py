"""One stage against two at twice the training's size, on the shipped toy (trained at 64 x 64).

    python benchmarks/hires.py [--images 16] [--steps 8] [--out docs/hires.png]

The captions name emoji; the real images are these emoji at 128 x 128. Printed per way to sample them: the Fréchet
distance to the real images in EfficientNet features, the distance of the spectra, the mean perceptual distance of each
image to the real one of its caption, and the seconds. The figure shows the first images.
"""

import argparse
import io
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from torch import Tensor  # noqa: E402

import asymflow as asymflow  # noqa: E402  # its torchvision shim must come before diffusers
from asymflow.diffusers_pipeline import AsymFlux2KleinHiresPipeline, AsymFlux2KleinPipeline  # noqa: E402
from asymflow.metrics.efficientnet import EfficientNetFeatures  # noqa: E402
from asymflow.metrics.frechet import FrechetStatistics, frechet_distance  # noqa: E402
from asymflow.metrics.spectrum import distance_of_spectra, radial_spectrum  # noqa: E402
from pipelines.toy.data import BACKGROUNDS, emoji_caption, emoji_stems, render_emoji  # noqa: E402
from pipelines.viz.image_grid import side_by_side, to_pil_images  # noqa: E402

MODELS = Path(__file__).parents[1] / "models"
SIDE = 128
"""Height and width of the images; the first stage has half"""
SHOWN = 4
"""Rows of the figure"""
WAYS = {  # strength of the second stage; None: one stage
    "one stage": None,
    "64 upscaled": 0.0,
    "two stages, strength 0.3": 0.3,
    "two stages, strength 0.6": 0.6,
}


def real_images(count: int) -> tuple[list[str], Tensor]:
    """Captions, and the emoji that they name, uint8 (count, 3, SIDE, SIDE)."""
    stems, grounds = emoji_stems(), sorted(BACKGROUNDS)
    chosen = [(stems[i * len(stems) // count], grounds[i % len(grounds)]) for i in range(count)]
    captions = [f"an emoji of {emoji_caption(stem)} on {ground}" for stem, ground in chosen]
    images = [Image.open(io.BytesIO(render_emoji(stem, ground, SIDE))) for stem, ground in chosen]
    return captions, torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)


def sample(pipeline: AsymFlux2KleinPipeline, captions: list[str], strength: float | None, **options) -> Tensor:
    """Images, uint8 (B, 3, SIDE, SIDE)."""
    hires, found = AsymFlux2KleinHiresPipeline.from_pipe(pipeline), []
    hires.set_progress_bar_config(disable=True)
    for seed, caption in enumerate(captions):
        common = {"height": SIDE, "width": SIDE, "generator": torch.Generator().manual_seed(seed), "output_type": "pt"}
        if strength is None:
            found.append(pipeline(caption, **common, **options).images)
        else:
            found.append(hires(caption, upscale=2, strength=strength, **common, **options).images)
    return (torch.cat(found) * 255).round().to(torch.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--out", default="docs/hires.png")
    options = parser.parse_args()

    pipeline = AsymFlux2KleinPipeline.from_pretrained(MODELS / "toy_klein", adapter=MODELS / "toy_asymflow")
    pipeline.set_progress_bar_config(disable=True)
    captions, real = real_images(options.images)
    features = EfficientNetFeatures(size=SIDE)
    expected = features(real)
    statistics = FrechetStatistics(expected.shape[1]).update(expected)
    columns = {"real": real}
    print(f"{options.images} images, {options.steps} steps")
    print(f"{'':<28}{'Fréchet':>9}{'spectra':>9}{'pairs':>12}{'s/image':>9}")
    for name, strength in WAYS.items():
        started = time.perf_counter()
        found = sample(pipeline, captions, strength, num_inference_steps=options.steps)
        seconds = (time.perf_counter() - started) / options.images
        made = features(found)
        distance = frechet_distance(FrechetStatistics(made.shape[1]).update(made), statistics)
        spectra = distance_of_spectra(radial_spectrum(found / 255), radial_spectrum(real / 255))
        own = (made - expected).norm(dim=1).mean()
        print(f"{name:<28}{distance:>9.2f}{spectra:>9.3f}{own:>12.2f}{seconds:>9.1f}", flush=True)
        columns[name] = found
    shown = {name: to_pil_images(images[:SHOWN].float() / 127.5 - 1) for name, images in columns.items()}
    side_by_side(shown, captions[:SHOWN], scale=1).save(options.out, optimize=True)
    print(options.out)


if __name__ == "__main__":
    main()
