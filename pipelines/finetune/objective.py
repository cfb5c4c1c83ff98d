"""One evaluation of the training loss (Eqs. 7, 18-22): student, teacher, variance reduction, perceptual term."""

import torch
from torch import Tensor, nn

from asymflow.losses import flow_matching_loss, perceptual_loss, total_loss, vr_loss
from asymflow.models.flux2 import PixelFlux2
from asymflow.parameterization import interpolate, lift, x_0_from_u
from asymflow.patches import patchify
from pipelines.finetune.batches import Batch
from pipelines.finetune.config import Loss
from pipelines.finetune.perceptual import distance_map, load_perceptual


class Objective(nn.Module):
    """The module that DeepSpeed wraps: a batch in, the loss and its terms by picture out."""

    def __init__(self, model: PixelFlux2, settings: Loss):
        super().__init__()
        self.model = model
        self.settings = settings
        self.space = model.subspace.space
        # in a list, so that casting, sharding and checkpoints pass over the frozen judge
        self._judge: list[nn.Module] = []
        if settings.kind == "variance_reduced" and settings.perceptual:
            self._judge.append(load_perceptual(settings.perceptual))

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns (loss, terms): the loss is a number; each term is (B,), detached."""
        x_0 = self.space.encode(batch.images)
        x_t = interpolate(x_0, batch.noise, batch.sigma)
        u_hat = self.model(x_t, batch.sigma, batch.text, batch.text_mask)
        if self.settings.kind == "flow_matching":
            by_picture = flow_matching_loss(batch.noise - x_0, u_hat, reduction="none")
            loss = self.settings.loss_scale * by_picture.mean()
            return loss, {"loss": self.settings.loss_scale * by_picture.detach()}
        return self._variance_reduced(batch, x_0, x_0_from_u(u_hat, x_t, batch.sigma))

    def _variance_reduced(self, batch: Batch, x_0: Tensor, x_0_hat: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        model, settings = self.model, self.settings
        tokens = [patchify(x, model.patch_size, model.subspace.layout) for x in (x_0, x_0_hat, batch.noise)]
        grid = (x_0.shape[-2] // model.patch_size, x_0.shape[-1] // model.patch_size)
        x_0_low_hat = model.teacher_x_0_low(
            batch.z_0, tokens[2], batch.sigma, batch.text, grid=grid, text_mask=batch.text_mask
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
        terms = {"variance_reduced": vr.detach(), "lambda": lam.mean((1, 2))}
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
        loss = total_loss(vr, perceptual, weight, settings.loss_scale)
        return loss.mean(), {"loss": loss.detach(), **terms}
