"""Edits of images: by a pixel model's pipelines, and by diffusers' pipelines of its latent base."""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Flux2KleinInpaintPipeline, Flux2KleinPipeline
from PIL import Image
from torch import Tensor

from asymflow.diffusers_pipeline import (
    AsymFlux2KleinImg2ImgPipeline,
    AsymFlux2KleinInpaintPipeline,
    AsymFlux2KleinPipeline,
)
from asymflow.diffusers_pipeline.images import over_white
from pipelines.sample.parameters import SamplingParameters
from pipelines.sample.pixel_samplers import run
from pipelines.sample.step_callback import OnStep

_LEAST_SIDE = 64  # of diffusers' reference images


@dataclass(frozen=True)
class Edit:
    """Images that a sample is made from."""

    image: Image.Image | None = None
    """Image to change, RGB or RGBA; None: the sample starts from noise"""
    mask: Image.Image | None = None
    """Mode L, of the image's size: white is sampled; where it is black, each byte is the image's"""
    references: tuple[Image.Image, ...] = ()
    """Reference images"""
    strength: float = 1.0
    """Fraction of the steps, the last ones, that change the image"""


class PixelEditor:
    """Edits by the pipelines of a pixel model, whose modules they share."""

    def __init__(self, pipeline: Any):
        kinds = (AsymFlux2KleinPipeline, AsymFlux2KleinImg2ImgPipeline, AsymFlux2KleinInpaintPipeline)
        self.sample, self.change, self.inpaint = (kind.from_pipe(pipeline) for kind in kinds)
        for one in (self.sample, self.change, self.inpaint):
            one.set_progress_bar_config(disable=True)

    def __call__(
        self, prompt: str, seed: int, parameters: SamplingParameters, edit: Edit, on_step: OnStep = None
    ) -> Image.Image:
        """Return the edited image, in the size of the parameters; with a mask, in that of the image."""
        references = _large_enough(edit.references)
        options: dict[str, Any] = {"latents": parameters.noise([seed])}
        if edit.image is None:
            return run(self.sample, [prompt], parameters, on_step, image=references, **options)[0]
        options |= {"image": edit.image, "image_reference": references, "strength": edit.strength}
        if edit.mask is None:
            return run(self.change, [prompt], parameters, on_step, **options)[0]
        return run(self.inpaint, [prompt], parameters, on_step, mask_image=edit.mask, **options)[0]


class LatentEditor:
    """Edits by diffusers' pipelines of the latent base, with its Euler solver and the noise of the same seed.

    diffusers has no image-to-image pipeline with a strength for FLUX.2 klein: here it is inpainting of the whole image,
    which also conditions on the image as a reference.
    """

    def __init__(self, base: str, transformer: Any, autoencoder: Any, text_encoder: Any, tokenizer: Any):
        scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(base, subfolder="scheduler")
        parts = (scheduler, autoencoder, text_encoder, tokenizer, transformer)
        self.sample, self.inpaint = Flux2KleinPipeline(*parts), Flux2KleinInpaintPipeline(*parts)
        for one in (self.sample, self.inpaint):
            one.set_progress_bar_config(disable=True)

    def __call__(
        self, prompt: str, seed: int, parameters: SamplingParameters, edit: Edit, on_step: OnStep = None
    ) -> Image.Image:
        """Return the edited image, in the size of the parameters."""

        def report(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            on_step(step, None)  # type: ignore[misc]
            return {}

        options: dict[str, Any] = {
            "prompt": prompt,
            "height": parameters.height,
            "width": parameters.width,
            "num_inference_steps": parameters.steps,
            "guidance_scale": parameters.guidance,
            "generator": torch.Generator("cpu").manual_seed(seed),
            "callback_on_step_end": None if on_step is None else report,
        }
        if parameters.negative_prompt:
            embedding, _ = self.sample.encode_prompt(parameters.negative_prompt, device=self.sample.device)
            options["negative_prompt_embeds"] = embedding
        references = _large_enough(edit.references)
        if edit.image is None:
            return self.sample(image=references, **options).images[0]
        mask = edit.mask or Image.new("L", edit.image.size, 255)
        image = over_white(edit.image)
        return self.inpaint(
            image=image, mask_image=mask, image_reference=references, strength=edit.strength, **options
        ).images[0]


def _large_enough(references: tuple[Image.Image, ...]) -> list[Image.Image] | None:
    """Return reference images, small ones enlarged to what diffusers accepts; None if there are none."""
    found = []
    for image in references:
        scale = max(1.0, _LEAST_SIDE / min(image.size))
        found.append(image.resize((round(image.width * scale), round(image.height * scale))) if scale > 1 else image)
    return found or None
