"""Time of a sampling step: the pixel pipeline against the stock latent one, with the same transformer and token count.

    python benchmarks/sampling.py                          # the shipped toy, on this processor
    python benchmarks/sampling.py --model 9b --device cuda # FLUX.2 klein's geometry with random weights, in bfloat16

Both run with guidance, alternately, on embeddings instead of prompts. Results are medians over rounds. `total` is
the time of the whole image, including the decoding in the latent pipeline. `operations` is the ratio of the matrix
products of one evaluation, computed from shapes: a lower bound of the ratio of the times where products dominate.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

import asymflow as asymflow  # noqa: E402  # its torchvision shim must come before diffusers
from asymflow.diffusers_pipeline import AsymFlux2KleinPipeline  # noqa: E402
from asymflow.models.geometry import KLEIN_9B, count_flops, network  # noqa: E402
from asymflow.models.klein_geometry import read_token_geometry, token_geometry  # noqa: E402
from asymflow.models.pixel import AsymFlux2Transformer2DModel  # noqa: E402
from asymflow.oklab import RELEASED  # noqa: E402
from asymflow.subspace import Subspace  # noqa: E402

from diffusers import (  # noqa: E402  # isort: skip
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
)

MODELS = Path(__file__).parents[1] / "models"
TEXT_TOKENS = 64


def toy() -> tuple[Flux2Transformer2DModel, AutoencoderKLFlux2]:
    base = str(MODELS / "toy_klein")
    transformer = Flux2Transformer2DModel.from_pretrained(base, subfolder="transformer", dtype=torch.float32)
    return transformer, AutoencoderKLFlux2.from_pretrained(base, subfolder="vae", dtype=torch.float32)


def klein_9b() -> tuple[Flux2Transformer2DModel, AutoencoderKLFlux2]:
    """Return transformer and autoencoder of the published geometry; values are random, times do not depend on them."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            return Flux2Transformer2DModel(**KLEIN_9B), AutoencoderKLFlux2()
    finally:
        torch.set_default_dtype(torch.float32)


def pipelines(model: str, device: str) -> tuple[AsymFlux2KleinPipeline, Flux2KleinPipeline]:
    transformer, vae = toy() if model == "toy" else klein_9b()
    patch_size = token_geometry(vae.config).pixels_per_token
    A = torch.linalg.qr(torch.randn(3 * patch_size**2, transformer.config.in_channels)).Q
    pixel = AsymFlux2Transformer2DModel.from_latent(transformer, Subspace(A, 2.4, "channel_first", RELEASED))
    scheduler = FlowMatchEulerDiscreteScheduler()
    pair = (
        AsymFlux2KleinPipeline(scheduler, None, None, pixel),
        Flux2KleinPipeline(scheduler, vae, None, None, transformer),
    )
    for pipeline in pair:
        pipeline.to(device)
        pipeline.set_progress_bar_config(disable=True)
    return pair


def seconds(run: Callable[[], object], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def operations(model: str, side: int) -> float:
    """Return the ratio of operations of an evaluation, pixel over latent."""
    toy_config = json.loads((MODELS / "toy_klein/transformer/config.json").read_text())
    config = toy_config if model == "toy" else KLEIN_9B
    patch_size = read_token_geometry(MODELS / "toy_klein").pixels_per_token if model == "toy" else 16
    tokens, widths = (side // patch_size) ** 2, (3 * patch_size**2, None)
    pixel, latent = (count_flops(network(config, width), tokens, TEXT_TOKENS).forward for width in widths)
    return pixel / latent


def measure(model: str, device: str, side: int, batch: int, steps: int, rounds: int) -> dict[str, float]:
    """Medians in seconds."""
    pixel, latent = pipelines(model, device)
    width, dtype = pixel.transformer.config.joint_attention_dim, pixel.transformer.dtype
    text = torch.randn(batch, TEXT_TOKENS, width, device=device, dtype=dtype)
    common = {"height": side, "width": side, "num_inference_steps": steps, "guidance_scale": 4.0}
    common |= {"prompt_embeds": text, "negative_prompt_embeds": text.flip(1)}

    channels, grid = latent.vae.config.latent_channels, side // latent.vae_scale_factor

    def decode(latents: Tensor) -> None:
        with torch.no_grad():
            latent.vae.decode(latents.to(dtype))

    runs: dict[str, Callable[[], object]] = {
        "pixel": lambda: pixel(output_type="pt", **common),
        "latent": lambda: latent(output_type="latent", **common),
        "decoding": lambda: decode(torch.randn(batch, channels, grid, grid, device=device)),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(rounds + 1):
        for name, run in runs.items():
            spent = seconds(run, device)
            if i:  # the first round warms up
                times[name].append(spent)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("toy", "9b"), default="toy")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--sides", type=int, nargs="+", help="pixels (default: 64 256 512, or 1024 of the 9b)")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    device = torch.cuda.get_device_name() if args.device == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"{args.model} on {device}, batch {args.batch}, {args.steps} steps, medians of {args.rounds} rounds")
    columns = {"side": 5, "latent step": 12, "pixel step": 11, "ratio": 6, "operations": 11, "decoding": 9, "total": 6}
    print(" ".join(f"{name:>{width}}" for name, width in columns.items()))
    for side in args.sides or ([64, 256, 512] if args.model == "toy" else [1024]):
        found = measure(args.model, args.device, side, args.batch, args.steps, args.rounds)
        latent, pixel = (1000 * found[name] / args.steps for name in ("latent", "pixel"))
        total = found["pixel"] / (found["latent"] + found["decoding"])
        print(
            f"{side:>5} {latent:>9.1f} ms {pixel:>8.1f} ms {pixel / latent:>6.3f} "
            f"{operations(args.model, side):>11.3f} "
            f"{1000 * found['decoding']:>6.0f} ms {total:>6.3f}"
        )


if __name__ == "__main__":
    main()
