"""A latent FLUX.2 lifted into pixel space: the same transformer, with other first and last layers (Sec. 5.1), and
the same model finetuned in its own latent space, to compare with (Sec. 6.2)."""

import copy

import torch
from diffusers import Flux2Transformer2DModel
from torch import Tensor, nn

from asymflow.models.adapted import (
    LORA_TARGETS,
    TRAINED_MODULES,
    AdaptedFlux2,
    pack_latents,
    run_transformer,
    square_grid,
    unpack_latents,
)
from asymflow.parameterization import calibrated_velocity
from asymflow.patches import patchify, unpatchify
from asymflow.subspace import Subspace

__all__ = [
    "LORA_TARGETS",
    "TRAINED_MODULES",
    "LatentFlux2",
    "PixelFlux2",
    "fused",
    "pack_latents",
    "run_transformer",
    "unpack_latents",
]


class PixelFlux2(AdaptedFlux2):
    """G_theta with the recovery of the full-rank velocity: normalised Oklab images in, velocity out.

    Build one with `from_latent`. `student` means the pixel model, `teacher` the latent one it came from.
    """

    sigma_floor_sample = 1e-4
    sigma_floor_train = 1e-6

    @classmethod
    def from_latent(
        cls, transformer: Flux2Transformer2DModel, subspace: Subspace, sigma_floor_sample: float = 1e-4
    ) -> "PixelFlux2":
        """Lift a latent transformer: fuse A^T into its `x_embedder` and A into its `proj_out` (Eq. 6).

        The transformer is taken over and changed. Its base is frozen; the three trained modules are not.

        Raises:
            ValueError: the subspace's rank is not the transformer's token width, or its patches are not square.
        """
        model = cls(transformer, subspace)
        model.sigma_floor_sample = sigma_floor_sample
        model._train_instead(
            x_embedder=fused(transformer.x_embedder.weight, subspace.A, after=False),
            proj_out=fused(transformer.proj_out.weight, subspace.A, after=True),
        )
        return model

    def forward(
        self, x_t: Tensor, sigma: Tensor, encoder_hidden_states: Tensor, text_mask: Tensor | None = None
    ) -> Tensor:
        """x_t (B, 3, H, W) normalised Oklab at sigma (B,) -> velocity u of the same shape (Eqs. 13-17).

        H and W are multiples of the patch size. The recovery runs in float32 whatever the network's type.
        """
        tokens = patchify(x_t.float(), self.patch_size, self.subspace.layout)
        sigma_floor = self.sigma_floor_train if self.training else self.sigma_floor_sample

        def network(scaled: Tensor, tau: Tensor) -> Tensor:
            return self._run(scaled, tau, encoder_hidden_states, self._grid(x_t), text_mask)

        u = calibrated_velocity(network, tokens, sigma.float(), self.A, self.s, sigma_floor)
        height, width = x_t.shape[-2:]
        return unpatchify(u, height, width, self.patch_size, layout=self.subspace.layout)


class LatentFlux2(AdaptedFlux2):
    """The latent baseline of Sec. 6.2: the same parts trained, in latent space; the lift is only the teacher's."""

    @classmethod
    def from_latent(cls, transformer: Flux2Transformer2DModel, subspace: Subspace) -> "LatentFlux2":
        """The transformer with trained copies of its three modules: at first it answers exactly as before.

        The transformer is taken over and changed. Raises ValueError as `AdaptedFlux2` does.
        """
        model = cls(transformer, subspace)
        copies = {name: copy.deepcopy(getattr(transformer, name)) for name in ("x_embedder", "proj_out")}
        model._train_instead(**copies)
        return model

    def forward(
        self,
        z_t: Tensor,
        sigma: Tensor,
        encoder_hidden_states: Tensor,
        text_mask: Tensor | None = None,
        grid: tuple[int, int] | None = None,
    ) -> Tensor:
        """Latent tokens z_t (B, N, d) at sigma (B,) -> their velocity u_z (B, N, d) in float32.

        sigma is the latent model's own time: nothing is calibrated. `grid` (h, w) may be left out where it is square.
        """
        return self._run(z_t, sigma.float(), encoder_hidden_states, grid or square_grid(z_t), text_mask).float()


def fused(weight: Tensor, A: Tensor, after: bool) -> nn.Linear:
    """The pixel layer of a latent one: W A^T before the blocks, A W after them (Eq. 6).

    Multiplied in float64 and kept in at least float32, whatever the type of W.
    """
    W, A = weight.double(), A.double().to(weight.device)
    product = A @ W if after else W @ A.mT
    dtype = torch.promote_types(weight.dtype, torch.float32)
    layer = nn.Linear(product.shape[1], product.shape[0], bias=False, device=weight.device, dtype=dtype)
    with torch.no_grad():
        layer.weight.copy_(product)
    return layer
