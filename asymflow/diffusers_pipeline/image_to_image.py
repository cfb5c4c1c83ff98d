"""Image-to-image with a pixel model: an image is noised, and denoised under a prompt."""

from typing import Any

import torch
from diffusers.pipelines.flux2.pipeline_output import Flux2PipelineOutput
from PIL import Image

from asymflow.diffusers_pipeline.base import PixelPipeline
from asymflow.diffusers_pipeline.canvas import Canvas
from asymflow.diffusers_pipeline.images import over_white, read_images, with_alpha_of
from asymflow.diffusers_pipeline.run import Arguments, Run
from asymflow.models.conditioned import prepare_references
from asymflow.pipeline_arguments import check_references


class AsymFlux2KleinImg2ImgPipeline(PixelPipeline):
    """Pipeline that changes an image. Its components and defaults are those of AsymFlux2KleinPipeline.

    Examples:
        >>> pipeline = AsymFlux2KleinImg2ImgPipeline.from_pipe(text_to_image)
        >>> pipeline("a photo of a red flower", image=Image.open("flower.png"), strength=0.5).images[0].save("red.png")
    """

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: Image.Image | list[Image.Image] | None = None,
        image_reference: Image.Image | list[Image.Image] | None = None,
        height: int | None = None,
        width: int | None = None,
        strength: float = 0.6,
        **arguments: Any,
    ) -> Flux2PipelineOutput | tuple:
        """Change images. With strength 1, the samples are those of AsymFlux2KleinPipeline at the same size.

        Args:
            prompt: One prompt, or a list.
            image: The image to change, or one per prompt, of one size. A transparent image is sampled on white and
                keeps its transparency.
            image_reference: Reference images for all samples, as `image` of AsymFlux2KleinPipeline.
            height: Height in pixels, a multiple of the patch size, to which the image is resized; None: its own height,
                whatever it is.
            width: Width in pixels, likewise.
            strength: Fraction of the steps, the last ones, that are run; 0 returns the image, 1 ignores it.
            **arguments: Further arguments of AsymFlux2KleinPipeline, such as `guidance_scale` and `generator`.

        Returns:
            The images, as `images` of a Flux2PipelineOutput, or in a tuple.

        Raises:
            ValueError: If an argument is invalid; before any work.
        """
        given = Arguments(prompt=prompt, **arguments)
        check_references(image_reference, "image_reference")
        images = read_images(image)
        canvas = Canvas.choose(images[0].size, height, width, self.patch_size)
        run = Run(self, given, canvas.size, prepare_references(image_reference, self.patch_size), strength)
        originals = run.for_each_sample("image", [canvas.resize(one) for one in images])
        shown = canvas.read([over_white(one) for one in originals], self._execution_device) * 2 - 1
        known = self.space.encode(shown)
        x_0 = run(known) if strength else known
        if given.output_type == "latent":
            return self._finish(x_0, given.return_dict)
        decoded = canvas.cut(self.space.decode(x_0) if strength else shown)
        found = self.image_processor.postprocess(decoded, output_type=given.output_type)
        if given.output_type == "pil":
            pairs = zip(originals, found, strict=True)
            found = [with_alpha_of(original, sample) if strength else original.copy() for original, sample in pairs]
        return self._finish(found, given.return_dict)
