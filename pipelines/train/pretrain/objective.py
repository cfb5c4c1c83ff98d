"""One evaluation of the loss of training from scratch: flow matching (Eq. 2) of the recovered velocity, and REPA."""

import torch
from torch import Tensor, nn

from asymflow.losses import asymmetric_loss, repa_loss
from asymflow.models.dinov2 import DinoFeatures
from asymflow.models.jit import LAYOUT, PixelJiT
from asymflow.parameterization import interpolate, target_u_a
from asymflow.patches import patchify
from pipelines.train.pretrain.batches import Batch
from pipelines.train.pretrain.config import Loss, Repa


class Objective(nn.Module):
    """The module that DeepSpeed wraps: a batch in, the loss and its terms by picture out."""

    def __init__(self, model: PixelJiT, settings: Loss, repa: Repa | None = None, encoder: DinoFeatures | None = None):
        super().__init__()
        self.model, self.settings, self.repa = model, settings, repa
        self._encoder = [encoder]  # in a list, so that casting, sharding and checkpoints pass over it

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns (loss, terms): the loss is a number, weighted by `batch.weight`; the terms (B,) are detached."""
        model, size = self.model, self.model.patch_size
        x_0 = patchify(model.subspace.space.encode(batch.images), size, LAYOUT)
        noise = patchify(batch.noise, size, LAYOUT)
        grid = batch.images.shape[-2] // size, batch.images.shape[-1] // size
        u_a_hat, features = model.predict(interpolate(x_0, noise, batch.sigma), batch.sigma, batch.labels, grid)
        u_a = target_u_a(x_0, noise, model.A)
        loss = asymmetric_loss(u_a, u_a_hat, batch.sigma, model.A, self.settings.sigma_floor, reduction="none")
        terms = {"flow_matching": loss.detach()}
        encoder = self._encoder[0]
        if self.repa and encoder and features is not None:
            targets = encoder.to(batch.images.device)(batch.images, grid)
            aligned = repa_loss(features.to(torch.float32), targets.to(torch.float32), reduction="none")
            terms["repa"] = aligned.detach()
            loss = loss + self.repa.weight * aligned
        return (batch.weight * loss).mean(), {"loss": loss.detach(), **terms}
