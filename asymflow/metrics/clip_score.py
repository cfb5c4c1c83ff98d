"""CLIP score: the cosine between a picture and its prompt, by CLIP ViT-L/14 at 336 pixels."""

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from asymflow.metrics.arguments import check_images
from asymflow.metrics.open_clip_model import FILE, OpenClip, load_open_clip

ARCHITECTURE = "ViT-L-14-336-quickgelu"  # OpenAI's weights need QuickGELU; without the suffix it is GELU
NEEDED = f"{FILE} of CLIP ViT-L/14-336 by OpenAI, such as timm/vit_large_patch14_clip_336.openai"


class ClipScore:
    """The raw cosine, neither scaled nor cut at 0. The shorter side goes to the model's by Pillow's bicubic, and the
    middle is looked at.

    The authors' evaluation resizes on the tensor (antialiased, clamped; 0.2 of 255 levels from Pillow's in the mean),
    rounds the longer side where this cuts it, and computes in float16.
    """

    def __init__(self, clip: OpenClip):
        from open_clip import image_transform

        self.clip = clip
        self.transform = image_transform(clip.size, is_train=False)  # its normalisation is OpenAI's
        self.protocol: dict[str, Any] = {
            "metric": "clip_score",
            "model": clip.identity,
            "activation": activation_of(clip.model),
            "resize": f"Pillow bicubic, shorter side to {clip.size}, centre crop",
            "precision": "float32",
        }

    @classmethod
    def load(
        cls, source: str, revision: str = "main", device: str = "cpu", architecture: str = ARCHITECTURE
    ) -> "ClipScore":
        """Raises MissingWeights."""
        return cls(load_open_clip(source, NEEDED, architecture, revision=revision, device=device))

    def pixels(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> what the model is given."""
        check_images(images)
        pictures = [Image.fromarray(image.permute(1, 2, 0).cpu().numpy()) for image in images]
        return torch.stack([self.transform(picture) for picture in pictures])

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,) float32, of uint8 images (B, 3, H, W) and their prompts."""
        return self.clip.cosines(self.pixels(images), list(prompts))


def activation_of(model: Any) -> str:
    names = {type(module).__name__ for module in model.modules()}
    return "quickgelu" if "QuickGELU" in names else "gelu"
