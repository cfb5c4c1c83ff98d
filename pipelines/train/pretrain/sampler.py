"""Sampler of a class-conditional model; see `pipelines.sample.sampler.ImageSampler`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from asymflow.guidance import Guidance
from asymflow.models.jit import PixelJiT
from asymflow.samplers import SOLVERS
from pipelines.sample.parameters import SamplingParameters
from pipelines.sample.step_callback import OnStep, after_each
from pipelines.train.pretrain.sampling import class_velocity


class ClassSampler:
    """Samples images by class; a prompt is the number of a class."""

    def __init__(self, model: PixelJiT, device: str):
        self.model, self.device = model, device

    @torch.no_grad()
    def __call__(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        parameters: SamplingParameters,
        on_step: OnStep = None,
    ) -> Tensor:
        """Return (B, 3, H, W) sRGB images in [-1, 1] of the classes, from the seeds' noise."""
        space, floor = self.model.subspace.space, parameters.sigma_floor
        labels = torch.tensor([int(prompt) for prompt in prompts], device=self.device)
        guidance = Guidance(parameters.guidance, parameters.orthogonal, parameters.interval)
        velocity = class_velocity(
            self.model, labels, guidance, self.model.sigma_floor_sample if floor is None else floor
        )
        clamp = space.clamp_to_gamut if parameters.clamp else None
        noise = parameters.noise(list(seeds)).to(self.device)
        x_0 = SOLVERS[parameters.solver](
            velocity, noise, parameters.steps, parameters.shift, clamp, after_each(on_step)
        )
        return space.decode(x_0).float().cpu()
