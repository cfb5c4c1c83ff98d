"""HPSv2.1: what people prefer, by a CLIP ViT-H/14 that was finetuned on their choices."""

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
    """The raw cosine. A picture's longer side goes to the model's by bicubic on the tensor; the rest of the square is
    black.

    Not as elsewhere: the authors' evaluation clamps the resized picture to [0, 1], by up to 15 of 255 levels at sharp
    edges, and computes in float16; the hpsv2 package does not clamp, and computes under autocast.
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
        """`activation` is quickgelu as for the paper's table, or gelu as in the hpsv2 package: 5e-3 apart. `antialias`
        is left to torchvision there, which does it for tensors since version 0.17.

        Raises MissingWeights, or ValueError for another activation.
        """
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation is {activation!r}; allowed: {', '.join(ACTIVATIONS)}")
        quick = activation == "quickgelu"
        return cls(load_open_clip(source, NEEDED, architecture, FILE, revision, device, quick_gelu=quick), antialias)

    def pixels(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> what the model is given."""
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
        """(B,) float32, of uint8 images (B, 3, H, W) and their prompts."""
        return self.clip.cosines(self.pixels(images), list(prompts))
