"""Validation images: the moving average beside the base, with the same captions and noise.

All randomness comes from `noise_for`, and the weights are restored bit by bit: the training does not depend on its
validation.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor

from asymflow.models.adapted import AdaptedModel
from asymflow.models.latent import ImageEncoder
from asymflow.models.lifted import LatentModel
from asymflow.parameterization import lift
from asymflow.patches import patchify, unpatchify
from asymflow.sampling import Guidance, Predict, latent_velocity, pixel_noise, sample_latents, sample_pixels
from pipelines.core.base_models import load_image_encoder
from pipelines.data.embeddings import Source
from pipelines.train.finetune.config import Validation
from pipelines.train.finetune.validation_prompts import Prompts
from pipelines.viz.image_grid import side_by_side, to_pil_images


class Validator:
    """Samples on all ranks: under ZeRO-3 each must run the network equally often."""

    def __init__(
        self,
        settings: Validation,
        model: AdaptedModel,
        prompts: Prompts,
        source: Source,
        unconditional: Tensor,
        base: str,
        device: torch.device,
    ):
        self.settings, self.model, self.base, self.device = settings, model, base, device
        self.captions = prompts.captions()
        self.height, self.width = next(prompts.images()).shape[-2:]
        self.text, self.references = prompts.embeddings(source), prompts.references()
        self.unconditional = unconditional.float()
        self.bases: Tensor | None = None

    def sample_images(self) -> Image.Image:
        """Return the image grid of the present weights beside the base; a collective call."""
        if self.bases is None:
            self.bases = self._gathered(self._base)
        now = self._gathered(self._now)
        columns = {"base": to_pil_images(self.bases), "moving average": to_pil_images(now)}
        if self.references is not None:
            columns = {"reference": to_pil_images(self.references[:, 0]), **columns}
        scale = max(1, 128 // self.width)
        return side_by_side(columns, self.captions, scale)

    def _gathered(self, sample: Callable[[Tensor, list[Tensor], Tensor | None], Tensor]) -> Tensor:
        """Return (B, 3, H, W) in [-1, 1] on every rank; each samples an equal part."""
        rank, workers = dist.get_rank(), dist.get_world_size()
        count = len(self.captions)
        each = -(-count // workers)
        mine = [(rank * each + i) % count for i in range(each)]
        noise = pixel_noise(self.settings.seed, mine, self.height, self.width).to(self.device)
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                references = None if self.references is None else self.references[mine].to(self.device)
                images = sample(noise, [self.text[i] for i in mine], references).float().contiguous()
        finally:
            self.model.train(training)
        everyone = [torch.empty_like(images) for _ in range(workers)]
        dist.all_gather(everyone, images)
        return torch.cat(everyone)[:count].cpu()

    def _now(self, noise: Tensor, text: list[Tensor], references: Tensor | None) -> Tensor:
        model, settings = self.model, self.settings
        guidance = Guidance(settings.guidance, settings.orthogonal)
        if isinstance(model, LatentModel):
            predict = partial(model, grid=self._grid, references=self._encode(references))
            z_0 = self._latents(predict, noise, text)
            return self._decoder().decode(z_0, self._grid)
        found: Any = model
        if references is not None:
            clean = model.subspace.space.encode(references.flatten(0, 1))
            references = clean.unflatten(0, references.shape[:2])
        return sample_pixels(
            found, noise, text, self.unconditional, guidance, settings.steps, settings.shift, references
        )

    def _base(self, noise: Tensor, text: list[Tensor], references: Tensor | None) -> Tensor:
        """Return samples of the frozen base: lifted (x_0^L = s A z_0) if pixels are trained, else decoded."""
        model, subspace = self.model, self.model.subspace
        with model.teacher_view() as teacher:
            z_0 = self._latents(latent_velocity(teacher, self._grid, self._encode(references)), noise, text)
        if isinstance(model, LatentModel):
            return self._decoder().decode(z_0, self._grid)
        tokens = lift(z_0, model.A, model.s)
        x_0 = unpatchify(tokens, self.height, self.width, model.patch_size, layout=subspace.layout)
        return subspace.space.decode(x_0)

    def _latents(self, predict: Predict, noise: Tensor, text: list[Tensor]) -> Tensor:
        model, settings = self.model, self.settings
        tokens = patchify(noise, model.patch_size, model.subspace.layout) @ model.A
        guidance = Guidance(settings.guidance, settings.orthogonal)
        return sample_latents(
            predict, tokens, text, self.unconditional, guidance, settings.steps, settings.latent_shift
        )

    def _encode(self, references: Tensor | None) -> Tensor | None:
        """Return the latent tokens (B, R, N, d) of reference images."""
        if references is None:
            return None
        return self._decoder().encode(references.flatten(0, 1)).unflatten(0, references.shape[:2])

    def _decoder(self) -> ImageEncoder:
        """Load the image encoder, for as long as it is needed: it is not part of the trained model."""
        return load_image_encoder(self.base, self.device.type)

    @property
    def _grid(self) -> tuple[int, int]:
        return self.height // self.model.patch_size, self.width // self.model.patch_size
