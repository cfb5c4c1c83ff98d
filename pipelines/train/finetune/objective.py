"""One evaluation of the training loss (Eqs. 7, 18-22): student, teacher, variance reduction, perceptual term."""

import torch
from torch import Tensor, nn

from asymflow.losses import flow_matching_loss, omega, perceptual_loss, total_loss, vr_loss
from asymflow.models.adapted import AdaptedFlux2
from asymflow.models.flux2 import LatentFlux2
from asymflow.parameterization import interpolate, lift, x_0_from_u
from asymflow.patches import patchify
from pipelines.train.finetune.batches import Batch
from pipelines.train.finetune.config import Loss
from pipelines.train.finetune.perceptual import distance_map, load_perceptual

Terms = dict[str, Tensor]
"""By picture, (B,)"""


class Objective(nn.Module):
    """The module that DeepSpeed wraps: a batch in, the loss and its terms by picture out."""

    def __init__(self, model: AdaptedFlux2, settings: Loss):
        super().__init__()
        self.model = model
        self.settings = settings
        self.space = model.subspace.space
        # in a list, so that casting, sharding and checkpoints pass over the frozen judge
        self._judge: list[nn.Module] = []
        if settings.kind == "variance_reduced" and settings.perceptual:
            self._judge.append(load_perceptual(settings.perceptual))

    def forward(self, batch: Batch) -> tuple[Tensor, Terms]:
        """Returns (loss, terms): the loss is a number, weighted by `batch.weight`; the terms are detached."""
        if isinstance(self.model, LatentFlux2):
            loss, terms = self._latent(batch)
        else:
            x_0 = self.space.encode(batch.images)
            x_t = interpolate(x_0, batch.noise, batch.sigma)
            u_hat = self.model(x_t, batch.sigma, batch.text, batch.text_mask)
            if self.settings.kind == "variance_reduced":
                loss, terms = self._variance_reduced(batch, x_0, x_0_from_u(u_hat, x_t, batch.sigma))
            else:
                loss, terms = self._flow_matching(batch.noise - x_0, u_hat)
        return (batch.weight * loss).mean(), {"loss": loss.detach(), **terms}

    def _flow_matching(self, u: Tensor, u_hat: Tensor) -> tuple[Tensor, Terms]:
        return self.settings.loss_scale * flow_matching_loss(u, u_hat, reduction="none"), {}

    def _latent(self, batch: Batch) -> tuple[Tensor, Terms]:
        """Of latents, with the projection of the pixels' noise: all models see the same noise."""
        noise = patchify(batch.noise, self.model.patch_size, self.model.subspace.layout) @ self.model.A
        z_t = interpolate(batch.z_0, noise, batch.sigma)
        u_hat = self.model(z_t, batch.sigma, batch.text, batch.text_mask, grid=self._grid(batch.images))
        return self._flow_matching(noise - batch.z_0, u_hat)

    def _grid(self, images: Tensor) -> tuple[int, int]:
        return images.shape[-2] // self.model.patch_size, images.shape[-1] // self.model.patch_size

    def _variance_reduced(self, batch: Batch, x_0: Tensor, x_0_hat: Tensor) -> tuple[Tensor, Terms]:
        model, settings = self.model, self.settings
        tokens = [patchify(x, model.patch_size, model.subspace.layout) for x in (x_0, x_0_hat, batch.noise)]
        x_0_low_hat = model.teacher_x_0_low(
            batch.z_0, tokens[2], batch.sigma, batch.text, grid=self._grid(x_0), text_mask=batch.text_mask
        )
        vr, lam = vr_loss(
            tokens[0],
            tokens[1],
            lift(batch.z_0, model.A, model.s),
            x_0_low_hat,
            batch.sigma,
            kappa=settings.kappa,
            sigma_floor=settings.sigma_floor,
            granularity=settings.granularity,
            reduction="none",
        )
        fading = omega(batch.sigma, settings.kappa)
        terms = {"variance_reduced": vr.detach(), "lambda": lam.mean((1, 2)), "omega": fading}
        perceptual, weight = torch.zeros_like(vr), 0.0
        if settings.perceptual:
            judge = self._judge[0].to(x_0.device)
            perceptual = perceptual_loss(
                distance_map(judge, self.space.decode(x_0_hat), batch.images),
                lam,
                batch.sigma,
                kappa=settings.kappa,
                sigma_floor=settings.sigma_floor,
                patch_size=model.patch_size,
                reduction="none",
            )
            weight = settings.perceptual.weight
            terms["perceptual"] = perceptual.detach()
        return total_loss(vr, perceptual, weight, settings.loss_scale), terms
