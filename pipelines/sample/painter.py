"""Pictures from prompts: of a pixel model, and of the latent model it came from, from the same noise."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    Flux2Transformer2DModel,
    UniPCMultistepScheduler,
)
from torch import Tensor

from asymflow.adapters import COMFYUI, WEIGHTS, SamplingDefaults
from asymflow.adapters.hub import local_folder
from asymflow.diffusers_pipeline import SCHEDULERS, AsymFlux2KleinPipeline
from asymflow.guidance import Guidance
from asymflow.models.latent import ImageEncoder, family_of
from asymflow.patches import patchify
from asymflow.samplers import noise_for
from pipelines import storage
from pipelines.sampling import latent_velocity, text_guided

_SCHEDULERS = {
    "unipc": UniPCMultistepScheduler,
    "euler": FlowMatchEulerDiscreteScheduler,
    "heun": FlowMatchHeunDiscreteScheduler,
}
OnStep = Callable[[int], None]
"""Told of each step, 0 .. steps - 1, once it is done"""


@dataclass(frozen=True)
class Drawing:
    """How to sample."""

    height: int
    width: int
    steps: int
    guidance: float
    shift: float
    latent_shift: float | None = None
    """Of the latent model; None: such that its noise levels are the pixel model's"""
    negative_prompt: str = ""
    interval: tuple[float, float] = (0.0, 1.0)
    orthogonal: bool = True
    clamp: bool = True
    solver: str = "unipc"


class Painter:
    """Holds the pixel model of an adapter on its base, or a merged pipeline without an adapter; and, once it is asked
    for, the latent model.

    `base` is a local folder, `adapter` a folder, S3 URI or repository, or empty. On a GPU all is in bfloat16.
    """

    def __init__(self, base: str, adapter: str = "", device: str = "cpu"):
        self.base, self.adapter, self.device = base, adapter, device
        self.dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
        if adapter.startswith("s3://"):
            with storage.local_folder(adapter) as folder:
                self._load(folder)
        else:
            self._load(local_folder(adapter) if adapter else None)

    def _load(self, adapter: Path | None) -> None:
        pipeline = AsymFlux2KleinPipeline.from_pretrained(self.base, adapter=adapter, dtype=self.dtype)
        self.pipeline: Any = pipeline.to(self.device)
        self.pipeline.set_progress_bar_config(disable=True)
        weights = [] if adapter is None else [p for p in (adapter / WEIGHTS, adapter / COMFYUI) if p.is_file()]
        self.adapter_sha256 = _sha256(weights[0]) if weights else ""

    @property
    def defaults(self) -> SamplingDefaults:
        return self.pipeline.defaults

    def pixel(
        self, prompts: Sequence[str], seeds: Sequence[int], drawing: Drawing, on_step: OnStep = lambda step: None
    ) -> Tensor:
        """(B, 3, H, W) sRGB in [-1, 1]: one picture a prompt, from the noise of its seed."""
        self.pipeline.scheduler = _SCHEDULERS[drawing.solver]()
        images = self.pipeline(
            list(prompts),
            height=drawing.height,
            width=drawing.width,
            num_inference_steps=drawing.steps,
            guidance_scale=drawing.guidance,
            negative_prompt=drawing.negative_prompt,
            latents=_noise(seeds, drawing),
            output_type="pt",
            shift=drawing.shift,
            guidance_interval=drawing.interval,
            orthogonal_guidance=drawing.orthogonal,
            clamp_to_gamut=drawing.clamp,
            callback_on_step_end=lambda pipeline, step, *_: on_step(step),
        ).images
        return 2 * images.float().cpu() - 1

    @torch.no_grad()
    def latent(
        self, prompts: Sequence[str], seeds: Sequence[int], drawing: Drawing, on_step: OnStep = lambda step: None
    ) -> Tensor:
        """The same of the latent model, from the projection of the same noise, decoded."""
        transformer, encoder = self.latent_model
        pixels = self.pipeline.transformer
        A, s, size = pixels.proj_buffer, float(pixels.scale_buffer), pixels.config.patch_size
        grid = (drawing.height // size, drawing.width // size)
        texts = self.pipeline.encode_prompt([*prompts, drawing.negative_prompt])
        guidance = Guidance(drawing.guidance, drawing.orthogonal, drawing.interval)
        velocity = text_guided(latent_velocity(transformer, grid), texts[:-1], texts[-1], guidance)
        noise = patchify(_noise(seeds, drawing).to(self.device), size) @ A
        shift = drawing.latent_shift or drawing.shift / s
        solve = SCHEDULERS[_SCHEDULERS[drawing.solver]]
        z_0 = solve(velocity, noise, drawing.steps, shift, callback=lambda step, z_t: on_step(step))
        return encoder.decode(z_0, grid).float().cpu()

    @cached_property
    def latent_model(self) -> tuple[Flux2Transformer2DModel, ImageEncoder]:
        """Loaded when it is first asked for."""
        transformer = Flux2Transformer2DModel.from_pretrained(self.base, subfolder="transformer", dtype=self.dtype)
        encoder = family_of(self.base).load_image_encoder(self.base, self.device, self.dtype)
        return transformer.to(self.device).eval(), encoder


def _noise(seeds: Sequence[int], drawing: Drawing) -> Tensor:
    return torch.stack([noise_for(seed, 0, (3, drawing.height, drawing.width)) for seed in seeds])


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
