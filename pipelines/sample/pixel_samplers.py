"""Samplers on the project's diffusers pipelines, in one stage or two."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from asymflow.diffusers_pipeline import SCHEDULERS, AsymFlux2KleinHiresPipeline
from pipelines.sample.config import Hires
from pipelines.sample.parameters import SamplingParameters
from pipelines.sample.step_callback import OnStep


class PixelSampler:
    """Samples by the project's diffusers pipeline."""

    def __init__(self, pipeline: Any):
        self.pipeline = pipeline
        pipeline.set_progress_bar_config(disable=True)

    def __call__(
        self, prompts: Sequence[str], seeds: Sequence[int], parameters: SamplingParameters, on_step: OnStep = None
    ) -> Tensor:
        """Return images; see `pipelines.sample.sampler.ImageSampler`."""
        noise = parameters.noise(list(seeds))
        images = run(self.pipeline, prompts, parameters, on_step, output_type="pt", latents=noise)
        return 2 * images.float().cpu() - 1


class HiresSampler:
    """Samples in two stages; the noise of an image is that of its seed: the first stage's, then the second's.

    Each stage has the shift of its size by `shift_law`; if that is None, both have the parameters' shift.
    """

    def __init__(self, pipeline: Any, hires: Hires, shift_law: str | None):
        self.pipeline, self.hires, self.shift_law = AsymFlux2KleinHiresPipeline.from_pipe(pipeline), hires, shift_law
        self.pipeline.set_progress_bar_config(disable=True)

    def __call__(
        self, prompts: Sequence[str], seeds: Sequence[int], parameters: SamplingParameters, on_step: OnStep = None
    ) -> Tensor:
        """Return images; see `pipelines.sample.sampler.ImageSampler`."""
        law = {} if self.shift_law is None else {"shift": None, "shift_law": self.shift_law}
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        stages = {"upscale": self.hires.upscale, "strength": self.hires.strength}
        options = {"output_type": "pt", "generator": generators, **stages, **law}
        return 2 * run(self.pipeline, prompts, parameters, on_step, **options).float().cpu() - 1


def run(
    pipeline: Any,
    prompts: Sequence[str],
    parameters: SamplingParameters,
    on_step: OnStep,
    **options: Any,
) -> Any:
    """Call a pipeline of a pixel model.

    Args:
        pipeline: the pipeline; its scheduler becomes that of the parameters' solver.
        prompts: one per image.
        parameters: sampling parameters.
        on_step: see `OnStep`.
        **options: further arguments of the pipeline, instead of the parameters'.

    Returns:
        The images, in the output type of the options.
    """
    pipeline.scheduler = SCHEDULERS[parameters.solver]()

    def report(pipeline: Any, step: int, timestep: float, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        on_step(step, pipeline.space.decode(tensors["x_0"]))  # type: ignore[misc]
        return {}

    arguments = {
        "height": parameters.height,
        "width": parameters.width,
        "num_inference_steps": parameters.steps,
        "guidance_scale": parameters.guidance,
        "negative_prompt": parameters.negative_prompt,
        "shift": parameters.shift,
        "guidance_interval": parameters.interval,
        "orthogonal_guidance": parameters.orthogonal,
        "clamp_to_gamut": parameters.clamp,
        "callback_on_step_end": None if on_step is None else report,
        "callback_on_step_end_tensor_inputs": ["x_0"],
    }
    return pipeline(list(prompts), **{**arguments, **options}).images
