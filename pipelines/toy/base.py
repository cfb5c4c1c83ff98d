"""Training of all parts of the toy base model, written as a diffusers folder of FLUX.2 klein's classes."""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline
from safetensors.torch import save_file
from torch import Tensor

from asymflow.atomic import atomic_folder
from asymflow.models.autoencoder import decode_latents, encode_images
from asymflow.models.klein_geometry import token_geometry
from asymflow.models.text import encode_captions
from asymflow.sampling import Guidance, latent_noise, latent_velocity, sample_latents
from pipelines.core.artifacts import Artifact
from pipelines.data.datasets import read_images
from pipelines.toy.autoencoder import psnr, to_unit, train_autoencoder
from pipelines.toy.config import Steps
from pipelines.toy.flow import SHIFT, Captions, Stage, train_flow
from pipelines.toy.perceptual import train_backbone
from pipelines.toy.text_encoder import train_text_encoder, train_tokenizer
from pipelines.viz.image_grid import grid_of, to_pil_images

BACKBONE_FILE = "perceptual_squeeze.safetensors"


def load_images(files: list[str]) -> tuple[Tensor, list[str]]:
    """Return images (N, 3, 64, 64) uint8 and captions; the demo's few thousand small images fit in memory."""
    batches = [rows for file in files for rows in read_images(file)]
    images = torch.cat([((rows.images + 1) * 127.5).round().to(torch.uint8) for rows in batches])
    return images, [caption for rows in batches for caption in rows.captions]


def shrunk(images: Tensor, scale: int) -> Tensor:
    """Return images whose sides are `scale` times smaller, by area."""
    return F.avg_pool2d(images, scale)


def make_toy_base(curated: Artifact, work: Path, out: Path, steps: Steps) -> dict[str, float]:
    """Train all parts and write them as a pipeline folder.

    Args:
        curated: Artifact of the curate step.
        work: Local folder of checkpoints, from which an interrupted run resumes, logs, and sample images.
        out: Folder to write.
        steps: Optimizer steps of each part.

    Returns:
        {"psnr_held_out": of the autoencoder, in dB}.
    """
    images, captions = load_images(curated.files("train", ".parquet"))
    held_out, held_out_captions = load_images(curated.files("held_out", ".parquet"))
    autoencoder = train_autoencoder(images, held_out, work, steps.autoencoder).eval()
    tokenizer = train_tokenizer(captions)
    text_encoder = train_text_encoder(tokenizer, captions, work, steps.text_encoder).eval()

    def embed(texts: list[str]) -> list[Tensor]:
        parts = [texts[i : i + 256] for i in range(0, len(texts), 256)]
        return [e for part in parts for e in encode_captions(text_encoder, tokenizer, part)]

    def stage(scale: int, batch: int, until: int) -> Stage:
        latents, held_out_latents = (
            torch.cat([encode_images(autoencoder, shrunk(to_unit(part), scale)) for part in split.split(256)])
            for split in (images, held_out)
        )
        side = scale * geometry.pixels_per_token
        return Stage(latents, held_out_latents, (images.shape[2] // side, images.shape[3] // side), batch, until)

    geometry = token_geometry(autoencoder.config)
    text = Captions(embed(captions), embed(held_out_captions), embed([""])[0])
    stages = [stage(2, 64, steps.flow_half_size), stage(1, 32, steps.flow_half_size + steps.flow)]
    transformer = train_flow(stages, text, work).eval()
    backbone = train_backbone(images, captions, work, steps.backbone)

    pipeline = Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        vae=autoencoder,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=transformer,
    )
    shown = held_out_captions[:32]
    grid = stages[-1].grid
    noise = latent_noise(0, range(len(shown)), grid, geometry.token_width)
    guidance = Guidance(scale=3.0, orthogonal=False)
    predict = latent_velocity(transformer, grid)
    z_0 = sample_latents(predict, noise, text.held_out[:32], text.unconditional, guidance, steps=32, shift=SHIFT)
    decoded = decode_latents(autoencoder, z_0, grid)
    grid_of(to_pil_images(decoded), columns=8, scale=2).save(work / "samples.png")
    x = to_unit(held_out)
    with torch.no_grad():
        x_hat = autoencoder.decode(autoencoder.encode(x).latent_dist.mode()).sample.clamp(-1, 1)
    grid_of(to_pil_images(torch.cat([x[:8], x_hat[:8]])), columns=8, scale=2).save(work / "reconstructions.png")
    measures = {"psnr_held_out": psnr(x_hat, x)}
    _write(pipeline, backbone.state_dict(), measures, out)
    return measures


def _write(pipeline: Flux2KleinPipeline, backbone: dict[str, Tensor], measures: dict[str, float], out: Path) -> None:
    """Write the folder atomically, in float16."""
    with atomic_folder(out) as partial:
        pipeline.to(torch.float16).save_pretrained(partial)
        save_file({k: v.half().contiguous() for k, v in backbone.items()}, partial / BACKBONE_FILE)
        (partial / "measures.json").write_text(json.dumps(measures, indent=1))
