"""Inpainting and outpainting with a pixel model: exact outside the mask, since there is no autoencoder."""

from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.flux2.pipeline_output import Flux2PipelineOutput
from PIL import Image

from asymflow.diffusers_pipeline.base import PixelPipeline
from asymflow.diffusers_pipeline.canvas import Canvas, masked_region
from asymflow.diffusers_pipeline.images import composite, over_white, read_images, read_masks
from asymflow.diffusers_pipeline.run import Arguments, Run
from asymflow.models.conditioned import prepare_references
from asymflow.pipeline_arguments import check_references


class AsymFlux2KleinInpaintPipeline(PixelPipeline):
    """Pipeline that samples the masked part of an image, with the components and defaults of AsymFlux2KleinPipeline.

    Examples:
        >>> pipeline = AsymFlux2KleinInpaintPipeline.from_pipe(text_to_image)
        >>> pipeline("a photo of grass", image=photograph, mask_image=mask).images[0].save("grass.png")
        >>> wider, mask = expand_canvas(photograph, right=256)
        >>> pipeline("a photo of grass", image=wider, mask_image=mask, strength=1.0).images[0].save("wider.png")
    """

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: Image.Image | list[Image.Image] | None = None,
        image_reference: Image.Image | list[Image.Image] | None = None,
        mask_image: Image.Image | list[Image.Image] | None = None,
        height: int | None = None,
        width: int | None = None,
        padding_mask_crop: int | None = None,
        strength: float = 0.8,
        **arguments: Any,
    ) -> Flux2PipelineOutput | tuple:
        """Sample the white part of the mask. The result has the image's size; where the mask is black, also its bytes.

        Args:
            prompt: One prompt, or a list.
            image: The image, or one per prompt, of one size. Transparent parts are sampled on white; what is sampled is
                opaque.
            image_reference: Reference images for all samples, as `image` of AsymFlux2KleinPipeline. The image itself
                may be one.
            mask_image: Mask of the image's size, or one per prompt: white is sampled, black is kept, gray is blended.
            height: Height in pixels, a multiple of the patch size, at which the image or its region is sampled; the
                sample is resized back. None: the image's own height, whatever it is.
            width: Width in pixels, likewise.
            padding_mask_crop: Sample only the region around what is masked, with this margin in pixels, at the size of
                `height` and `width`; None: the whole image.
            strength: Fraction of the steps, the last ones, that are run; 0 returns the image, 1 starts from noise.
            **arguments: Further arguments of AsymFlux2KleinPipeline, such as `guidance_scale` and `generator`. Output
                of type `np` or `pt` has the values of the 8-bit images; `latent` is the canvas that was sampled.

        Returns:
            The images, as `images` of a Flux2PipelineOutput, or in a tuple.

        Raises:
            ValueError: If an argument is invalid; before any work.
        """
        given = Arguments(prompt=prompt, **arguments)
        check_references(image_reference, "image_reference")
        images = read_images(image)
        masks, size = read_masks(mask_image, images[0].size), images[0].size
        region = None if padding_mask_crop is None else masked_region(masks, padding_mask_crop, height, width)
        canvas = Canvas.choose(size, height, width, self.patch_size, region)
        run = Run(self, given, canvas.size, prepare_references(image_reference, self.patch_size), strength)
        images, masks = run.for_each_sample("image", images), run.for_each_sample("mask_image", masks)

        device = self._execution_device
        known = self.space.encode(canvas.read([canvas.resize(over_white(one)) for one in images], device) * 2 - 1)
        weight = canvas.read([canvas.resize(mask) for mask in masks], device)
        x_0 = run(known, weight) if strength else known
        if given.output_type == "latent":
            return self._finish(torch.lerp(known, x_0, weight), given.return_dict)
        samples = self.image_processor.postprocess(canvas.cut(self.space.decode(x_0)), output_type="pil")
        found: Any = [
            composite(one, canvas.place(sample, size), mask) if strength else one.copy()
            for one, sample, mask in zip(images, samples, masks, strict=True)
        ]
        if given.output_type != "pil":
            found = VaeImageProcessor.pil_to_numpy(found)
        if given.output_type == "pt":
            found = VaeImageProcessor.numpy_to_pt(found)
        return self._finish(found, given.return_dict)
