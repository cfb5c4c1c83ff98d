"""Loss of the finetune (Eqs. 7, 18-22): student, teacher, variance reduction, perceptual term."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from asymflow.losses import flow_matching_loss, omega, perceptual_loss, total_loss, vr_loss
from asymflow.models.adapted import AdaptedModel
from asymflow.models.lifted import LatentModel
from asymflow.parameterization import interpolate, lift, x_0_from_u
from asymflow.patches import patchify

Kind = Literal["variance_reduced", "flow_matching"]
Distance = Callable[[Tensor, Tensor], Tensor]
"""Maps two batches of images (B, 3, H, W) in [-1, 1] to a distance per pixel, (B, 1, H, W)"""
Terms = dict[str, Tensor]
"""Terms of the loss per image, (B,), detached"""


class FinetuneObjective(nn.Module):
    """Loss of the finetune of a model. The model is the only registered submodule.

    Args:
        model: The student, which contains its teacher. A LatentModel is trained on latents, with noise projected from
            the pixels' noise: all models are trained with the same noise.
        kind: `variance_reduced` (Eq. 22; for a PixelModel), or `flow_matching` (Eq. 2).
        perceptual: The distance of Eq. 20, such as `lpips.LPIPS(net="vgg", spatial=True)`; None: no perceptual term.
            A module is moved to the images' device. It is not registered: casting, sharding and checkpoints leave it
            unchanged.
        perceptual_weight: omega_P of Eq. 22.
        kappa: Fading strength of Eq. 21; None: no fading.
        sigma_floor: Lower bound of sigma in the weight 1 / sigma^2.
        granularity: `patch` for one lambda per patch (the paper), `patch_channel` for one per patch and color channel
            (the released code).
        loss_scale: Factor of the whole loss.

    Raises:
        ValueError: If the kind is `variance_reduced` and the model is a LatentModel, which has no lifted teacher.
    """

    def __init__(
        self,
        model: AdaptedModel,
        kind: Kind = "variance_reduced",
        perceptual: Distance | None = None,
        perceptual_weight: float = 0.2,
        kappa: float | None = 0.3,
        sigma_floor: float = 5e-2,
        granularity: str = "patch",
        loss_scale: float = 1.0,
    ):
        super().__init__()
        if kind == "variance_reduced" and isinstance(model, LatentModel):
            raise ValueError("kind is 'variance_reduced'; a latent model is trained with 'flow_matching'")
        self.model, self.kind = model, kind
        self.perceptual_weight, self.kappa, self.sigma_floor = perceptual_weight, kappa, sigma_floor
        self.granularity, self.loss_scale = granularity, loss_scale
        self._perceptual = [perceptual]  # in a list, so that it is not registered

    def forward(
        self,
        images: Tensor,
        noise: Tensor,
        sigma: Tensor,
        z_0: Tensor,
        text: Tensor,
        text_mask: Tensor | None = None,
        weight: Tensor | None = None,
        references: Tensor | None = None,
        reference_latents: Tensor | None = None,
    ) -> tuple[Tensor, Terms]:
        """Compute the loss of one batch.

        Args:
            images: sRGB images (B, 3, H, W) in [-1, 1].
            noise: Standard normal noise (B, 3, H, W).
            sigma: Noise levels (B,).
            z_0: Latent tokens (B, N, d) of the images, row by row, for the teacher or a latent model.
            text: Embeddings of the captions (B, T, E).
            text_mask: True for valid tokens (B, T); None: all are valid.
            weight: Factors of the images' losses (B,); None: ones.
            references: R source images per image (B, R, 3, H, W), sRGB in [-1, 1], for a pixel model; None: none.
            reference_latents: Latent tokens (B, R, N, d) of the same, for the teacher or a latent model.

        Returns:
            (loss, terms): the mean of weight times loss, a scalar to call `backward` on; and the unweighted terms per
            image: `loss` and, with variance reduction, `variance_reduced`, `lambda`, `omega`, `perceptual`.
        """
        if isinstance(self.model, LatentModel):
            loss, terms = self._latent(images, noise, sigma, z_0, text, text_mask, reference_latents)
        else:
            space = self.model.subspace.space
            x_0 = space.encode(images)
            clean = (
                None
                if references is None
                else space.encode(references.flatten(0, 1)).unflatten(0, references.shape[:2])
            )
            x_t = interpolate(x_0, noise, sigma)
            u_hat = self.model(x_t, sigma, text, text_mask, references=clean)
            if self.kind == "variance_reduced":
                x_0_hat = x_0_from_u(u_hat, x_t, sigma)
                teacher = (text, text_mask, reference_latents)
                loss, terms = self._variance_reduced(images, x_0, x_0_hat, noise, sigma, z_0, *teacher)
            else:
                loss, terms = self._flow_matching(noise - x_0, u_hat)
        weighted = loss if weight is None else weight * loss
        return weighted.mean(), {"loss": loss.detach(), **terms}

    def _flow_matching(self, u: Tensor, u_hat: Tensor) -> tuple[Tensor, Terms]:
        return self.loss_scale * flow_matching_loss(u, u_hat, reduction="none"), {}

    def _latent(
        self,
        images: Tensor,
        noise: Tensor,
        sigma: Tensor,
        z_0: Tensor,
        text: Tensor,
        text_mask: Tensor | None,
        references: Tensor | None,
    ) -> tuple[Tensor, Terms]:
        noise_tokens = self._tokens(noise) @ self.model.A
        z_t = interpolate(z_0, noise_tokens, sigma)
        u_hat = self.model(z_t, sigma, text, text_mask, self._grid(images), references)
        return self._flow_matching(noise_tokens - z_0, u_hat)

    def _variance_reduced(
        self,
        images: Tensor,
        x_0: Tensor,
        x_0_hat: Tensor,
        noise: Tensor,
        sigma: Tensor,
        z_0: Tensor,
        text: Tensor,
        text_mask: Tensor | None,
        references: Tensor | None,
    ) -> tuple[Tensor, Terms]:
        model = self.model
        x_0_low_hat = model.teacher_x_0_low(
            z_0, self._tokens(noise), sigma, text, self._grid(images), text_mask, references
        )
        vr, lam = vr_loss(
            self._tokens(x_0),
            self._tokens(x_0_hat),
            lift(z_0, model.A, model.s),
            x_0_low_hat,
            sigma,
            kappa=self.kappa,
            sigma_floor=self.sigma_floor,
            granularity=self.granularity,
            reduction="none",
        )
        terms = {"variance_reduced": vr.detach(), "lambda": lam.mean((1, 2)), "omega": omega(sigma, self.kappa)}
        perceptual, weight = torch.zeros_like(vr), 0.0
        if (distance := self._perceptual[0]) is not None:
            if isinstance(distance, nn.Module):
                distance = distance.to(images.device)
            perceptual = perceptual_loss(
                distance(model.subspace.space.decode(x_0_hat), images),
                lam,
                sigma,
                kappa=self.kappa,
                sigma_floor=self.sigma_floor,
                patch_size=model.patch_size,
                reduction="none",
            )
            weight = self.perceptual_weight
            terms["perceptual"] = perceptual.detach()
        return total_loss(vr, perceptual, weight, self.loss_scale), terms

    def _tokens(self, images: Tensor) -> Tensor:
        return patchify(images, self.model.patch_size, self.model.subspace.layout)

    def _grid(self, images: Tensor) -> tuple[int, int]:
        return images.shape[-2] // self.model.patch_size, images.shape[-1] // self.model.patch_size
