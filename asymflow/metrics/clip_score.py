"""CLIP score (Hessel et al. 2021): the cosine of an image and its prompt, by CLIP ViT-L/14 at 336 pixels."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from asymflow.metrics.arguments import check_images, to_pil_images
from asymflow.metrics.open_clip_model import FILE, OpenClip, load_open_clip

ARCHITECTURE = "ViT-L-14-336-quickgelu"  # OpenAI's weights need QuickGELU; without the suffix it is GELU
NEEDED = f"{FILE} of CLIP ViT-L/14-336 by OpenAI, such as timm/vit_large_patch14_clip_336.openai"


class ClipScore:
    """Compute the raw cosine, neither scaled nor clamped at 0.

    The shorter side is resized to the model's by Pillow's bicubic, then the image is center-cropped. The paper's
    authors resize on the tensor (antialiased, clamped; 0.2 of 255 levels from Pillow's in the mean), round the longer
    side where this cuts it, and compute in float16.

    Args:
        clip: The model.
    """

    def __init__(self, clip: OpenClip):
        from open_clip import image_transform

        self.clip = clip
        self.transform = image_transform(clip.size, is_train=False)  # with OpenAI's normalization
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
        """Load the model; see `load_open_clip`.

        Args:
            source: File, folder or repository of the weights.
            revision: Revision of the repository.
            device: Device of the model.
            architecture: open_clip's name of the architecture.

        Returns:
            The metric.

        Raises:
            MissingWeights: If the weights are missing or of another architecture.
        """
        return cls(load_open_clip(source, NEEDED, architecture, revision=revision, device=device))

    def pixels(self, images: Tensor) -> Tensor:
        """Return the input of the model.

        Args:
            images: sRGB images, uint8 (B, 3, H, W).

        Returns:
            Normalized pixels (B, 3, size, size), float32.
        """
        check_images(images)
        pil_images = to_pil_images(images)
        return torch.stack([self.transform(image) for image in pil_images])

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the cosines.

        Args:
            images: sRGB images, uint8 (B, 3, H, W).
            prompts: One prompt per image.

        Returns:
            Cosines (B,), float32; higher is better.

        Raises:
            ValueError: For other images, or another number of prompts.
        """
        return self.clip.cosines(self.pixels(images), list(prompts))


def activation_of(model: Any) -> str:
    """Return the activation of a CLIP: `quickgelu` or `gelu`.

    Args:
        model: open_clip's model.

    Returns:
        The name.
    """
    names = {type(module).__name__ for module in model.modules()}
    return "quickgelu" if "QuickGELU" in names else "gelu"
