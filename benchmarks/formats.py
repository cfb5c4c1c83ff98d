"""Export formats of the shipped toy: file size, velocity error, and distance of the images.

    python benchmarks/formats.py [--images 24] [--steps 16]

Printed per format: the size of the transformer's file; the relative error of its velocity, |u - u_full| / |u_full| over
eight noise levels; the PSNR of its images to those of the full model from the same noise; and the sliced Wasserstein
distance of 7x7 patches between the two sets of images. `other noise` is that distance between two sets of the full
model, from different noise. All models compute in float32; `bf16` has its weights rounded to bfloat16. NF4 is quantized
in memory, because diffusers reads it only on an accelerator.
"""

import argparse
import copy
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402

import asymflow as asymflow  # noqa: E402  # its torchvision shim must come before diffusers
from asymflow.adapters import load_single_file, write_fp8, write_gguf  # noqa: E402
from asymflow.adapters.nf4 import quantize_nf4  # noqa: E402
from asymflow.adapters.single_file import GGUF_TYPES  # noqa: E402
from asymflow.diffusers_pipeline import AsymFlux2KleinPipeline  # noqa: E402
from asymflow.metrics.sliced_wasserstein import patches_of, sliced_wasserstein  # noqa: E402
from asymflow.models.flux2 import image_positions, text_positions  # noqa: E402

MODELS = Path(__file__).parents[1] / "models"
PROMPTS = [
    "an emoji of grinning face on light blue", "an emoji of strawberry on white",
    "a photo of a red flower, wide view", "a photo of grass",
]  # fmt: skip
SIDE, SIGMAS = 64, torch.linspace(0.05, 0.95, 8)


@torch.no_grad()
def velocity(model, text: torch.Tensor, patch: int) -> torch.Tensor:
    grid = SIDE // patch
    x_t = torch.randn(len(SIGMAS), grid**2, 3 * patch**2, generator=torch.Generator().manual_seed(0))
    text = text.expand(len(SIGMAS), -1, -1)
    positions = image_positions((grid, grid)), text_positions(text.shape[1])
    return model(x_t, text, SIGMAS, *positions, return_dict=False)[0]


def sample(pipeline, count: int, steps: int, first_seed: int = 0) -> torch.Tensor:
    """Images (B, 3, H, W) in [0, 1]."""
    return pipeline(
        [PROMPTS[i % len(PROMPTS)] for i in range(count)],
        num_inference_steps=steps,
        generator=[torch.Generator().manual_seed(first_seed + i) for i in range(count)],
        output_type="pt",
    ).images


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return sliced_wasserstein(*(patches_of(images, generator=torch.Generator().manual_seed(0)) for images in (a, b)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--steps", type=int, default=16)
    options = parser.parse_args()

    full = AsymFlux2KleinPipeline.from_pretrained(MODELS / "toy_klein", adapter=MODELS / "toy_asymflow")
    full.set_progress_bar_config(disable=True)
    model, text = full.transformer, full.encode_prompt(PROMPTS[0])[0][None]
    expected, images = velocity(model, text, full.patch_size), sample(full, options.images, options.steps)
    others = sample(full, options.images, options.steps, first_seed=options.images)

    print(f"{options.images} images, {options.steps} steps")
    print(f"{'format':<12}{'MB':>8}{'velocity error':>16}{'dB':>7}{'sliced Wasserstein':>20}")

    def row(name: str, found, size: int) -> None:
        error = (velocity(found, text, full.patch_size) - expected).norm() / expected.norm()
        pipeline = AsymFlux2KleinPipeline.from_pipe(full, transformer=found)
        pipeline.set_progress_bar_config(disable=True)
        made = sample(pipeline, options.images, options.steps)
        decibel = -10 * torch.log10((made - images).square().mean())
        print(f"{name:<12}{size / 1e6:>8.2f}{error:>16.2%}{decibel:>7.1f}{distance(made, images):>20.4f}", flush=True)

    half, nf4 = copy.deepcopy(model), copy.deepcopy(model)
    for parameter in half.parameters():
        parameter.data = parameter.data.to(torch.bfloat16).float()
    quantize_nf4(nf4)
    with tempfile.TemporaryDirectory() as folder:
        row("bf16", half, 2 * sum(p.numel() for p in model.parameters()))
        for path in (write_fp8(model, folder), *(write_gguf(model, folder, type) for type in GGUF_TYPES)):
            name = path.stem.removeprefix("asymflow-")
            row(name, load_single_file(path, torch.float32), path.stat().st_size)
        nf4.save_pretrained(f"{folder}/nf4")
        row("nf4", nf4, Path(folder, "nf4", "diffusion_pytorch_model.safetensors").stat().st_size)
    print(f"{'other noise':<12}{'':>8}{'':>16}{'':>7}{distance(others, images):>20.4f}")


if __name__ == "__main__":
    main()
