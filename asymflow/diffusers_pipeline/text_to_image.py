"""AsymFLUX.2 klein as a diffusers pipeline: prompts and reference images to pixels, without an autoencoder."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.pipelines.flux2.pipeline_output import Flux2PipelineOutput
from PIL import Image
from torch import Tensor

from asymflow.diffusers_pipeline.base import PixelPipeline
from asymflow.diffusers_pipeline.run import Arguments, Run
from asymflow.models.conditioned import prepare_references
from asymflow.models.text import MAX_TOKENS
from asymflow.pipeline_arguments import check_references, choose_size


class AsymFlux2KleinPipeline(PixelPipeline):
    """Pipeline that samples images from a pixel model made of FLUX.2 klein.

    `PixelPipeline` describes its components and settings.

    Examples:
        >>> pipeline = AsymFlux2KleinPipeline.from_pretrained("models/toy_klein", adapter="models/toy_asymflow")
        >>> pipeline("an emoji of grinning face on light blue").images[0].save("smile.png")
    """

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: Image.Image | list[Image.Image] | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | list[Tensor] | None = None,
        negative_prompt_embeds: Tensor | list[Tensor] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
        callback_on_step_end: Callable[[Any, int, float, dict], dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        max_sequence_length: int = MAX_TOKENS,
        shift: float | None = None,
        guidance_interval: tuple[float, float] = (0.0, 1.0),
        orthogonal_guidance: float | None = None,
        clamp_to_gamut: float = True,
        sigmas: Sequence[float] | None = None,
        shift_law: str = "sqrt",
    ) -> Flux2PipelineOutput | tuple:
        """Sample images. Each image is the same in any batch.

        Args:
            prompt: One prompt, or a list.
            image: Reference images for all samples, as in FLUX.2, each in its own size.
            height: Height in pixels, a multiple of the patch size; None: that of the first reference image, else the
                default.
            width: Width in pixels, likewise.
            num_inference_steps: Number of steps; None: the default.
            guidance_scale: Guidance scale; 1: no guidance; None: the default.
            negative_prompt: Prompt of the unconditional velocity, one for all or a list; None: empty.
            num_images_per_prompt: Images per prompt.
            generator: Source of the starting noise, or a list of one per image.
            latents: Starting noise (B, 3, H, W), instead of `generator`'s.
            prompt_embeds: Embeddings (B, T, E), or a list of (T_i, E), instead of `prompt`.
            negative_prompt_embeds: Embeddings instead of `negative_prompt`.
            output_type: `pil`; `np` or `pt` (values in [0, 1]); or `latent`: normalized Oklab, not clamped again.
            return_dict: Return a Flux2PipelineOutput instead of a tuple.
            attention_kwargs: Further `joint_attention_kwargs` of the transformer.
            callback_on_step_end: Called with (pipeline, step, timestep, tensors) after each step; tensors that it
                returns replace them. `latents` are the noisy images (B, 3, H, W) in normalized Oklab. If it sets
                `pipeline._interrupt`, sampling ends with the current images.
            callback_on_step_end_tensor_inputs: Names of the tensors for the callback: `latents`, `prompt_embeds`, and
                `x_0`, the denoised images in normalized Oklab, for a preview.
            max_sequence_length: Longer prompts are cut.
            shift: Shift of the noise levels; None: the model's at this size, by `shift_law`.
            guidance_interval: Noise levels in [0, 1], both ends included, at which guidance is applied.
            orthogonal_guidance: Fraction of the guidance's component along the denoised image that is removed: 1 is
                the orthogonal form (APG), which lowers contrast; None: the default.
            clamp_to_gamut: Fraction of the steps, the last ones, whose denoised image is clamped to the sRGB gamut
                (App. B.2).
            sigmas: Noise levels before the shift, one per step, falling from 1, without the final 0; None: evenly
                spaced.
            shift_law: `sqrt`: the model's shift grows with the side from one to four megapixels; `extrapolated`: also
                below and above; `constant`: one shift at every size.

        Returns:
            The images, as `images` of a Flux2PipelineOutput, or in a tuple.

        Raises:
            ValueError: If a size is not a multiple of the patch, or another argument is invalid; before any work.
        """
        arguments = Arguments(
            prompt=prompt,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            negative_prompt=negative_prompt,
            num_images_per_prompt=num_images_per_prompt,
            generator=generator,
            latents=latents,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            output_type=output_type,
            return_dict=return_dict,
            attention_kwargs=attention_kwargs,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
            max_sequence_length=max_sequence_length,
            shift=shift,
            guidance_interval=guidance_interval,
            orthogonal_guidance=orthogonal_guidance,
            clamp_to_gamut=clamp_to_gamut,
            sigmas=sigmas,
            shift_law=shift_law,
        )
        check_references(image)
        references = prepare_references(image, self.patch_size)
        followed = references[0].shape[-2:] if references else None
        default = (self.defaults.height, self.defaults.width)
        size = choose_size(height, width, followed, default, self.patch_size)
        x_0 = Run(self, arguments, size, references)()
        decoded = x_0 if output_type == "latent" else self.space.decode(x_0)
        return self._finish(self.image_processor.postprocess(decoded, output_type=output_type), return_dict)
