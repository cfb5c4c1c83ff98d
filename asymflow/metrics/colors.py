"""GenEval's colors (Ghosh et al. 2023): which of ten an object has, by CLIP ViT-L/14 of OpenAI (open_clip)."""

from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from asymflow.metrics.geneval import Box
from asymflow.metrics.open_clip_model import load_open_clip

COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
TEMPLATES = ("a photo of a {c} {obj}", "a photo of a {c}-colored {obj}", "a photo of a {c} object")
BACKGROUND = 0x99
"""Level of the gray (#999) outside the object"""
MODEL = "timm/vit_large_patch14_clip_224.openai"
ARCHITECTURE = "ViT-L-14-quickgelu"  # OpenAI's weights need QuickGELU; by its name alone, ViT-L-14 has GELU


class ColorClassifier:
    """Classify an object's color with open_clip's model, on its device, in float32.

    Pixels outside the mask become #999, then the image is cropped to the box and preprocessed as by CLIP: bicubic to
    the shorter side, center crop. The embeddings of each color's three sentences are normalized, averaged and
    normalized again; those of a class are computed once.

    Args:
        model: open_clip's model.
        tokenizer: Its tokenizer.
        identity: Name of the weights in the protocol.
    """

    def __init__(self, model: Any, tokenizer: Any, identity: str):
        from open_clip import image_transform

        self.model, self.tokenizer = model.eval(), tokenizer
        parameter = next(model.parameters())
        self.device = parameter.device
        self.transform = image_transform(model.visual.image_size, is_train=False)
        self.features: dict[str, Tensor] = {}  # (10, dim) of each class
        self.protocol: dict[str, Any] = {
            "metric": "geneval_colors",
            "model": identity,
            "precision": str(parameter.dtype).removeprefix("torch."),
            "resize": f"bicubic, shorter side to {model.visual.image_size}, centre crop",
            "background": f"#{BACKGROUND:02x}{BACKGROUND:02x}{BACKGROUND:02x}",
            "colors": list(COLORS),
            "templates": list(TEMPLATES),
        }

    @classmethod
    def load(
        cls, source: str = MODEL, revision: str = "main", device: str = "cpu", architecture: str = ARCHITECTURE
    ) -> "ColorClassifier":
        """Load the model from `open_clip_model.safetensors` in a folder or repository, or from any safetensors file.

        Args:
            source: File, folder or repository of the weights.
            revision: Revision of the repository.
            device: Device of the model.
            architecture: open_clip's name of the architecture.

        Returns:
            The classifier.

        Raises:
            MissingWeights: If the weights are missing or of another architecture.
        """
        clip = load_open_clip(source, f"{ARCHITECTURE} as in {MODEL}", architecture, revision=revision, device=device)
        return cls(clip.model, clip.tokenizer, f"{architecture} {clip.identity}")

    @torch.inference_mode()
    def __call__(self, image: Tensor, mask: Tensor, box: Box, name: str) -> str:
        """Return the color of an object.

        Args:
            image: sRGB image, uint8 (3, H, W).
            mask: Mask of the object, bool (H, W).
            box: Box of the object in pixels.
            name: Class of the object.

        Returns:
            One of COLORS.

        Raises:
            ValueError: For other shapes or types, or a box that is not inside the image.
        """
        pixels = self.transform(isolate_object(image, mask, box))[None].to(self.device)
        features = F.normalize(self.model.encode_image(pixels), dim=-1)[0]
        return COLORS[int((self._of_class(name) @ features).argmax())]

    def _of_class(self, name: str) -> Tensor:
        if name not in self.features:
            texts = [template.format(c=color, obj=name) for color in COLORS for template in TEMPLATES]
            sentences = F.normalize(self.model.encode_text(self.tokenizer(texts).to(self.device)), dim=-1)
            means = sentences.view(len(COLORS), len(TEMPLATES), -1).mean(1)
            self.features[name] = F.normalize(means, dim=-1)
        return self.features[name]


def isolate_object(image: Tensor, mask: Tensor, box: Box) -> Image.Image:
    """Return the part of an image inside a box, #999 outside the mask.

    Args:
        image: sRGB image, uint8 (3, H, W).
        mask: Mask of the object, bool (H, W).
        box: Box of the object in pixels.

    Returns:
        The part.

    Raises:
        ValueError: For other shapes or types, or a box that is not inside the image.
    """
    if image.ndim != 3 or image.shape[0] != 3 or image.dtype != torch.uint8:
        raise ValueError(f"the image is {image.dtype} {tuple(image.shape)}; expected uint8 (3, H, W)")
    if mask.dtype != torch.bool or mask.shape != image.shape[1:]:
        raise ValueError(f"the mask is {mask.dtype} {tuple(mask.shape)}; expected bool {tuple(image.shape[1:])}")
    height, width = mask.shape
    left, top, right, bottom = (round(side) for side in box[:4])
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise ValueError(f"the box {box[:4]} is not inside the image of {width}x{height}")
    alone = torch.where(mask.cpu(), image.cpu(), BACKGROUND)[:, top:bottom, left:right]
    return Image.fromarray(alone.permute(1, 2, 0).contiguous().numpy())
