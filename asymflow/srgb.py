"""sRGB as the space in which pixels are generated, as the ImageNet models have it: values stay as they are."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class SrgbSpace:
    """sRGB in [-1, 1]; the same methods as `asymflow.oklab.OklabSpace`, all on (..., 3, H, W)."""

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return images

    def encode8(self, images: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """uint8 sRGB to [-1, 1]. ValueError for another type."""
        if images.dtype != torch.uint8:
            raise ValueError(f"images are {images.dtype}; expected uint8")
        return images.to(dtype) / 127.5 - 1

    def decode(self, x: torch.Tensor, clamp: bool = True) -> torch.Tensor:
        return x.clamp(-1, 1) if clamp else x

    def clamp_to_gamut(self, x: torch.Tensor) -> torch.Tensor:
        """It passes no gradient."""
        return x.detach().clamp(-1, 1)
