"""Latent models lifted into pixel space: the same transformer with other first and last layers (Sec. 5.1).

Also the latent baseline, finetuned in its own latent space (Sec. 6.2).
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from asymflow.models.adapted import AdaptedModel, square_grid
from asymflow.parameterization import calibrated_velocity
from asymflow.patches import patchify, unpatchify
from asymflow.subspace import Subspace


class PixelModel(AdaptedModel):
    """Pixel model G_theta with the recovery of the full-rank velocity: normalized Oklab images in, velocity out.

    Build one with `from_latent`. The pixel model is the student, the latent model that it came from the teacher.
    """

    sigma_floor_sample = 1e-4
    """Lower bound of sigma in the recovery, in evaluation mode"""
    sigma_floor_train = 1e-6
    """Lower bound of sigma in the recovery, in training mode"""

    @classmethod
    def from_latent(cls, transformer: Any, subspace: Subspace, sigma_floor_sample: float = 1e-4) -> "PixelModel":
        """Lift a latent transformer: fuse A^T into its first layer and A into its last (Eq. 6).

        The base is frozen; the three trained modules are not.

        Args:
            transformer: The latent transformer. The model keeps and changes it.
            subspace: Subspace of the latent tokens.
            sigma_floor_sample: Lower bound of sigma in the recovery, in evaluation mode.

        Returns:
            The model.

        Raises:
            ValueError: If the rank is not the width of the transformer's tokens, or the patches are not square.
        """
        model = cls(transformer, subspace)
        model.sigma_floor_sample = sigma_floor_sample
        first, last = (transformer.get_submodule(name) for name in (model.backbone.first, model.backbone.last))
        model._replace_trained(
            {
                model.backbone.first: fused(first.weight, subspace.A, after=False, bias=first.bias),
                model.backbone.last: fused(last.weight, subspace.A, after=True, bias=last.bias),
            }
        )
        return model

    def forward(
        self,
        x_t: Tensor,
        sigma: Tensor,
        encoder_hidden_states: Tensor,
        text_mask: Tensor | None = None,
        references: Tensor | None = None,
    ) -> Tensor:
        """Return the velocity of images (Eqs. 13-17). The recovery runs in float32 whatever the network's type.

        Args:
            x_t: Noisy images (B, 3, H, W) in normalized Oklab; H and W are multiples of the patch size.
            sigma: Noise levels (B,).
            encoder_hidden_states: Text embeddings (B, T, E).
            text_mask: True for valid text tokens (B, T); None: all are valid.
            references: R clean reference images per image (B, R, 3, H, W) in normalized Oklab; None: there are none.

        Returns:
            u (B, 3, H, W), float32.
        """
        tokens = patchify(x_t.float(), self.patch_size, self.subspace.layout)
        reference_tokens = self._reference_tokens(references, self.s)
        sigma_floor = self.sigma_floor_train if self.training else self.sigma_floor_sample

        def network(scaled: Tensor, tau: Tensor) -> Tensor:
            return self._run(scaled, tau, encoder_hidden_states, self._grid(x_t), text_mask, reference_tokens)

        u = calibrated_velocity(network, tokens, sigma.float(), self.A, self.s, sigma_floor)
        height, width = x_t.shape[-2:]
        return unpatchify(u, height, width, self.patch_size, layout=self.subspace.layout)


class LatentModel(AdaptedModel):
    """Latent baseline of Sec. 6.2: the same parts trained, in latent space. Only its teacher uses the lift."""

    @classmethod
    def from_latent(cls, transformer: Any, subspace: Subspace) -> "LatentModel":
        """Add trained copies of a transformer's three modules; at first the output does not change.

        Args:
            transformer: The latent transformer. The model keeps and changes it.
            subspace: Subspace of the latent tokens.

        Returns:
            The model.

        Raises:
            ValueError: As in `AdaptedModel`.
        """
        model = cls(transformer, subspace)
        ends = (model.backbone.first, model.backbone.last)
        model._replace_trained({name: copy.deepcopy(transformer.get_submodule(name)) for name in ends})
        return model

    def forward(
        self,
        z_t: Tensor,
        sigma: Tensor,
        encoder_hidden_states: Tensor,
        text_mask: Tensor | None = None,
        grid: tuple[int, int] | None = None,
        references: Tensor | None = None,
    ) -> Tensor:
        """Return the velocity of latent tokens. sigma is the latent model's own noise level, without calibration.

        Args:
            z_t: Noisy latent tokens (B, N, d).
            sigma: Noise levels (B,).
            encoder_hidden_states: Text embeddings (B, T, E).
            text_mask: True for valid text tokens (B, T); None: all are valid.
            grid: Rows and columns of tokens, (h, w); None: a square.
            references: Latent tokens of R reference images per image (B, R, N, d); None: there are none.

        Returns:
            u_z (B, N, d), float32.

        Raises:
            ValueError: If the tokens do not fill the grid.
        """
        grid = grid or square_grid(z_t)
        return self._run(z_t, sigma.float(), encoder_hidden_states, grid, text_mask, references).float()


def fused(weight: Tensor, A: Tensor, after: bool, bias: Tensor | None = None) -> nn.Linear:
    """Return the pixel layer of a latent layer: W A^T before the blocks, A W and A b after them (Eq. 6).

    The products are computed in float64 and stored in at least float32.

    Args:
        weight: Weight W of the latent layer, (width, d) before the blocks, (d, width) after them.
        A: Basis (D, d).
        after: Whether the layer comes after the blocks.
        bias: Bias b of the latent layer, (width,) or (d,); None: there is none.

    Returns:
        A layer from D values or to D values, with a bias if the latent layer has one.
    """
    W, A = weight.double(), A.double().to(weight.device)
    product = A @ W if after else W @ A.mT
    dtype = torch.promote_types(weight.dtype, torch.float32)
    inputs, outputs = product.shape[1], product.shape[0]
    layer = nn.Linear(inputs, outputs, bias=bias is not None, device=weight.device, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(product)
        if bias is not None:
            layer.bias.copy_(A @ bias.double() if after else bias)
    return layer
