"""High resolution in two stages: sample at a lower resolution, upscale, and finish by image-to-image."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from diffusers.pipelines.flux2.pipeline_output import Flux2PipelineOutput
from PIL import Image
from torch.nn.functional import interpolate

from asymflow.diffusers_pipeline.base import PixelPipeline
from asymflow.diffusers_pipeline.run import Arguments, Run
from asymflow.models.conditioned import prepare_references
from asymflow.pipeline_arguments import check_references, choose_size


class AsymFlux2KleinHiresPipeline(PixelPipeline):
    """Pipeline that samples in two stages. Its components and defaults are those of AsymFlux2KleinPipeline.

    The first stage determines the composition at a size like those of the training; the second adds detail.

    Examples:
        >>> pipeline = AsymFlux2KleinHiresPipeline.from_pipe(text_to_image)
        >>> pipeline("a photo of grass", height=2048, width=2048, upscale=2).images[0].save("grass.png")
    """

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: Image.Image | list[Image.Image] | None = None,
        height: int | None = None,
        width: int | None = None,
        upscale: float = 2.0,
        strength: float = 0.3,
        **arguments: Any,
    ) -> Flux2PipelineOutput | tuple:
        """Sample images. With strength 0, they are upscaled images of AsymFlux2KleinPipeline with the same seeds.

        The noise of an image comes from its generator: first that of the first stage, then that of the second.

        Args:
            prompt: One prompt, or a list.
            image: Reference images for all samples in both stages, as in AsymFlux2KleinPipeline.
            height: Height of the result in pixels, a multiple of the patch size; None: the default times `upscale`.
            width: Width in pixels, likewise.
            upscale: Ratio of the sizes of result and first stage, at least 1. The first stage's is rounded to whole
                patches.
            strength: Fraction of the steps, the last ones, that the second stage runs.
            **arguments: Further arguments of AsymFlux2KleinPipeline, for both stages, such as `guidance_scale` and
                `generator`. `latents` is the noise of the first stage. Each stage has the shift of its own size, unless
                `shift` is given. The callback's steps count on in the second stage.

        Returns:
            The images, as `images` of a Flux2PipelineOutput, or in a tuple.

        Raises:
            ValueError: If an argument is invalid; before any work.
        """
        given = Arguments(prompt=prompt, **arguments)
        if isinstance(upscale, bool) or not isinstance(upscale, int | float) or not 1 <= upscale < float("inf"):
            raise ValueError(f"upscale is {upscale!r}; it must be a number of at least 1")
        check_references(image)
        references = prepare_references(image, self.patch_size)
        default = (self._whole(self.defaults.height * upscale), self._whole(self.defaults.width * upscale))
        size = choose_size(height, width, None, default, self.patch_size)
        first = Run(self, given, (self._whole(size[0] / upscale), self._whole(size[1] / upscale)), references)
        count_on = _with_offset(given.callback_on_step_end, len(first.sigmas) - 1)
        second = Run(
            self, replace(given, latents=None, callback_on_step_end=count_on), size, references, strength
        )  # fmt: skip
        decoded = interpolate(self.space.decode(first()), size, mode="bicubic").clamp(-1, 1)
        x_0 = self.space.encode(decoded)
        if len(second.sigmas) > 1 and not self.interrupt:
            x_0 = second(x_0)
            decoded = self.space.decode(x_0)
        found = x_0 if given.output_type == "latent" else decoded
        return self._finish(self.image_processor.postprocess(found, output_type=given.output_type), given.return_dict)

    def _whole(self, side: float) -> int:
        """Return the multiple of the patch size that is nearest to a side in pixels, at least one patch."""
        return max(1, round(side / self.patch_size)) * self.patch_size


def _with_offset(callback: Callable[..., dict] | None, steps: int) -> Callable[..., dict] | None:
    """Return a step callback whose steps are counted from `steps`."""
    if callback is None:
        return None
    return lambda pipeline, step, timestep, tensors: callback(pipeline, steps + step, timestep, tensors)
