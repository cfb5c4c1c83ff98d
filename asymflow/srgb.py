"""sRGB as the color space of the pixels, as in ImageNet models: values stay as they are."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class SrgbSpace:
    """sRGB in [-1, 1], with the methods of `asymflow.oklab.OklabSpace`."""

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Return the images unchanged.

        Args:
            images: sRGB (..., 3, H, W) in [-1, 1].

        Returns:
            The same images.
        """
        return images

    def encode8(self, images: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Convert 8-bit images to [-1, 1].

        Args:
            images: sRGB, uint8 (..., 3, H, W).
            dtype: Type of the result.

        Returns:
            sRGB of the same shape in [-1, 1].

        Raises:
            ValueError: If the images are not uint8.
        """
        if images.dtype != torch.uint8:
            raise ValueError(f"images are {images.dtype}; expected uint8")
        return images.to(dtype) / 127.5 - 1

    def decode(self, x: torch.Tensor, clamp: bool = True) -> torch.Tensor:
        """Return generated pixels as images.

        Args:
            x: sRGB (..., 3, H, W).
            clamp: Clamp to [-1, 1].

        Returns:
            sRGB of the same shape.
        """
        return x.clamp(-1, 1) if clamp else x

    def clamp_to_gamut(self, x: torch.Tensor) -> torch.Tensor:
        """Clamp pixels to [-1, 1], without gradient.

        Args:
            x: sRGB (..., 3, H, W).

        Returns:
            sRGB of the same shape.
        """
        return x.detach().clamp(-1, 1)
