"""HPSv2.1 (Wu et al. 2023): human preference, by a CLIP ViT-H/14 finetuned on choices between images."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from asymflow.metrics.arguments import check_images
from asymflow.metrics.clip_score import activation_of
from asymflow.metrics.open_clip_model import OpenClip, load_open_clip

ARCHITECTURE, FILE = "ViT-H-14", "HPS_v2.1_compressed.pt"
NEEDED = f"{FILE} of xswu/HPSv2"
ACTIVATIONS = ("quickgelu", "gelu")


class HpsV2:
    """Compute the raw cosine of image and prompt.

    The longer side is resized to the model's by bicubic on the tensor; the rest of the square is black. This differs
    from other implementations: the authors' evaluation clamps the resized image to [0, 1] (by up to 15 of 255 levels at
    sharp edges) and computes in float16; the hpsv2 package does not clamp, and computes under autocast.

    Args:
        clip: The model.
        antialias: Whether resizing is antialiased.
    """

    def __init__(self, clip: OpenClip, antialias: bool = True):
        self.clip, self.antialias = clip, antialias
        self.protocol: dict[str, Any] = {
            "metric": "hpsv2.1",
            "model": clip.identity,
            "activation": activation_of(clip.model),
            "resize": f"bicubic on the tensor, longer side to {clip.size}, zero padding",
            "antialias": antialias,
            "precision": "float32",
        }

    @classmethod
    def load(
        cls,
        source: str,
        revision: str = "main",
        device: str = "cpu",
        activation: str = "quickgelu",
        architecture: str = ARCHITECTURE,
        antialias: bool = True,
    ) -> "HpsV2":
        """Load the model; see `load_open_clip`.

        Args:
            source: File, folder or repository of the weights.
            revision: Revision of the repository.
            device: Device of the model.
            activation: `quickgelu` as for the paper's table, or `gelu` as in the hpsv2 package; scores differ by 5e-3.
            architecture: open_clip's name of the architecture.
            antialias: Whether resizing is antialiased; torchvision's default for tensors since version 0.17.

        Returns:
            The metric.

        Raises:
            MissingWeights: If the weights are missing or of another architecture.
            ValueError: For another activation.
        """
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation is {activation!r}; allowed: {', '.join(ACTIVATIONS)}")
        quick = activation == "quickgelu"
        return cls(load_open_clip(source, NEEDED, architecture, FILE, revision, device, quick_gelu=quick), antialias)

    def pixels(self, images: Tensor) -> Tensor:
        """Return the input of the model.

        Args:
            images: sRGB images, uint8 (B, 3, H, W).

        Returns:
            Normalized pixels (B, 3, size, size), float32.
        """
        check_images(images)
        side, (height, width) = self.clip.size, images.shape[-2:]
        scale = side / max(height, width)
        small = (max(1, round(height * scale)), max(1, round(width * scale)))
        pixels = images.to(self.clip.device, torch.float32) / 255
        if small != (height, width):
            pixels = F.interpolate(pixels, small, mode="bicubic", antialias=self.antialias)
        above, left = (side - small[0]) // 2, (side - small[1]) // 2
        pixels = F.pad(pixels, (left, side - small[1] - left, above, side - small[0] - above))
        return self.clip.normalise(pixels)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the scores.

        Args:
            images: sRGB images, uint8 (B, 3, H, W).
            prompts: One prompt per image.

        Returns:
            Cosines (B,), float32; higher is better.

        Raises:
            ValueError: For other images, or another number of prompts.
        """
        return self.clip.cosines(self.pixels(images), list(prompts))
