"""Image encoder of the families whose latents are shifted and scaled per channel, then packed in square cells."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from asymflow.models.backbone import TokenGeometry


class ChannelNormalizedImages:
    """ImageEncoder: z = (latents - mean) / std, packed in cells.

    Args:
        autoencoder: The autoencoder; the mode of its posterior is taken.
        geometry: Geometry of the tokens.
        mean: Mean of each channel, or of all.
        std: Standard deviation of each channel, or of all.
        pack: Packs latents (B, C, H, W) in cells of `side`, as `Backbone.pack`.
        unpack: Its inverse, (tokens, grid, side).
        side: Side of a cell.
        frames: Whether the autoencoder's images and latents have an axis of frames, (B, C, 1, H, W).
    """

    def __init__(
        self,
        autoencoder: Any,
        geometry: TokenGeometry,
        mean: Sequence[float] | float,
        std: Sequence[float] | float,
        pack: Callable[[Tensor, int], Tensor],
        unpack: Callable[[Tensor, tuple[int, int], int], Tensor],
        side: int = 2,
        frames: bool = False,
    ):
        self.autoencoder, self.frames, self.side = autoencoder, frames, side
        self.pixels_per_token, self.token_width = geometry
        self.pack, self.unpack = pack, unpack
        device, dtype = autoencoder.device, autoencoder.dtype
        self.mean, self.std = (torch.tensor(v, device=device, dtype=dtype).view(-1, 1, 1) for v in (mean, std))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Encode images; see `ImageEncoder.encode`.

        Args:
            images: sRGB images (B, 3, H, W) in [-1, 1].

        Returns:
            z_0 tokens (B, N, d), row by row, in the autoencoder's type.
        """
        images = images.to(self.autoencoder.device, self.autoencoder.dtype)
        latents = self.autoencoder.encode(images[:, :, None] if self.frames else images).latent_dist.mode()
        latents = latents[:, :, 0] if self.frames else latents
        return self.pack((latents - self.mean) / self.std, self.side)

    @torch.no_grad()
    def decode(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Decode latent tokens; see `ImageEncoder.decode`.

        Args:
            tokens: Latent tokens (B, h w, d).
            grid: Rows and columns of tokens, (h, w).

        Returns:
            sRGB images (B, 3, H, W) in [-1, 1], float32.
        """
        tokens = tokens.to(self.autoencoder.device, self.autoencoder.dtype)
        latents = self.unpack(tokens, grid, self.side) * self.std + self.mean
        images = self.autoencoder.decode(latents[:, :, None] if self.frames else latents).sample
        return (images[:, :, 0] if self.frames else images).clamp(-1, 1).float()
