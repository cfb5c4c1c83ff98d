"""Loss of training from scratch: flow matching (Eq. 2) of the recovered velocity, and REPA (Sec. 6.1)."""

from torch import Tensor, nn

from asymflow.losses import asymmetric_loss, repa_loss
from asymflow.models.dinov2 import DinoFeatures
from asymflow.models.jit import LAYOUT, PixelJiT
from asymflow.parameterization import interpolate, target_u_a
from asymflow.patches import patchify


class PretrainObjective(nn.Module):
    """Loss of a class-conditional pixel model. The model is the only registered submodule.

    Args:
        model: The model, with a projector (`add_projector`) if there is an encoder.
        sigma_floor: Lower bound of sigma where it divides the error outside the subspace.
        encoder: Frozen encoder of REPA; None: no alignment. It is moved to the images' device. It is not registered:
            casting, sharding and checkpoints leave it unchanged.
        repa_weight: Factor of the alignment loss.
    """

    def __init__(
        self,
        model: PixelJiT,
        sigma_floor: float = 5e-2,
        encoder: DinoFeatures | None = None,
        repa_weight: float = 0.5,
    ):
        super().__init__()
        self.model, self.sigma_floor, self.repa_weight = model, sigma_floor, repa_weight
        self._encoder = [encoder]  # in a list, so that it is not registered

    def forward(
        self, images: Tensor, noise: Tensor, sigma: Tensor, labels: Tensor, weight: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of one batch.

        Args:
            images: sRGB images (B, 3, H, W) in [-1, 1].
            noise: Standard normal noise (B, 3, H, W).
            sigma: Noise levels (B,).
            labels: Classes (B,); the number of classes stands for no class.
            weight: Factors of the images' losses (B,); None: ones.

        Returns:
            (loss, terms): the mean of weight times loss, a scalar to call `backward` on; and the unweighted terms per
            image, detached: `loss`, `flow_matching`, and `repa` if there is an encoder.
        """
        model, size = self.model, self.model.patch_size
        x_0 = patchify(model.subspace.space.encode(images), size, LAYOUT)
        noise_tokens = patchify(noise, size, LAYOUT)
        grid = images.shape[-2] // size, images.shape[-1] // size
        u_a_hat, features = model.predict(interpolate(x_0, noise_tokens, sigma), sigma, labels, grid)
        u_a = target_u_a(x_0, noise_tokens, model.A)
        loss = asymmetric_loss(u_a, u_a_hat, sigma, model.A, self.sigma_floor, reduction="none")
        terms = {"flow_matching": loss.detach()}
        encoder = self._encoder[0]
        if encoder is not None and features is not None:
            targets = encoder.to(images.device)(images, grid)
            aligned = repa_loss(features.float(), targets.float(), reduction="none")
            terms["repa"] = aligned.detach()
            loss = loss + self.repa_weight * aligned
        weighted = loss if weight is None else weight * loss
        return weighted.mean(), {"loss": loss.detach(), **terms}
