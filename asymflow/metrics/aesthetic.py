"""LAION's aesthetic predictors: linear layers on the image features of CLIP ViT-L/14 by OpenAI.

The first (LAION-AI/aesthetic-predictor) is one layer; the second, improved one (`sac+logos+ava1-l14-linearMSE.pth`) is
five, without activations between them.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from asymflow.metrics.arguments import check_images, to_pil_images
from asymflow.metrics.clip_score import activation_of
from asymflow.metrics.open_clip_model import FILE, OpenClip, load_open_clip, read_weights
from asymflow.metrics.weights import MissingWeights, find

HEAD_FILE = "sa_0_4_vit_l_14_linear.pth"
"""Default file of a folder"""
ARCHITECTURE = "ViT-L-14-quickgelu"
HEAD_NEEDED = (
    "sa_0_4_vit_l_14_linear.pth of LAION-AI/aesthetic-predictor, or sac+logos+ava1-l14-linearMSE.pth of "
    "christophschuhmann/improved-aesthetic-predictor on GitHub"
)
CLIP_NEEDED = f"{FILE} of CLIP ViT-L/14 by OpenAI, such as timm/vit_large_patch14_clip_224.openai"


def build_head(weights: Mapping[str, Tensor]) -> nn.Sequential:
    """Return the linear layers of a predictor.

    Args:
        weights: `weight` and `bias` of one layer; or those of `layers.0`, `layers.2` and so on, in the order of their
            numbers. Dropout between them is not used for inference.

    Returns:
        The layers, float32.

    Raises:
        ValueError: If other weights are there, layers do not fit on each other, or the last has more than one output.
    """
    names = sorted({name.rpartition(".")[0] for name in weights}, key=_layer_number)
    layers: list[nn.Linear] = []
    for name in names:
        own = {part: weights.get(f"{name}.{part}" if name else part) for part in ("weight", "bias")}
        weight, bias = own["weight"], own["bias"]
        if weight is None or bias is None or weight.ndim != 2 or bias.shape != weight.shape[:1]:
            raise ValueError(f"{name or 'the layer'} has no matching weight and bias")
        if layers and layers[-1].out_features != weight.shape[1]:
            raise ValueError(f"{name} takes {weight.shape[1]} features, not {layers[-1].out_features}")
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": weight.float(), "bias": bias.float()})
        layers.append(layer)
    if not layers or layers[-1].out_features != 1:
        raise ValueError("the last layer must have one output")
    return nn.Sequential(*layers)


def _layer_number(name: str) -> int:
    if not (found := re.fullmatch(r"layers\.(\d+)|", name)):
        raise ValueError(f"{name!r} is not a layer of a predictor")
    return int(found[1] or 0)


class Aesthetic:
    """Compute the aesthetic score of images, without their prompts.

    The shorter side is resized to CLIP's by Pillow's bicubic, then the image is center-cropped.

    Args:
        clip: The CLIP.
        head: The predictor, as from `build_head`.
        identity: Name of the predictor's weights in the protocol.

    Raises:
        ValueError: If CLIP's features have another width than the predictor's input.
    """

    def __init__(self, clip: OpenClip, head: nn.Sequential, identity: str):
        from open_clip import image_transform

        self.clip, self.head = clip, head.eval().to(clip.device)
        self.transform = image_transform(clip.size, is_train=False)  # with OpenAI's normalization
        width = clip.model.visual.output_dim
        if head[0].in_features != width:
            raise ValueError(f"the predictor takes {head[0].in_features} features, CLIP gives {width}")
        self.protocol: dict[str, Any] = {
            "metric": "aesthetic",
            "model": f"{identity} on {clip.identity}",
            "layers": len(head),
            "activation": activation_of(clip.model),
            "resize": f"Pillow bicubic, shorter side to {clip.size}, center crop",
            "precision": "float32",
        }

    @classmethod
    def load(cls, source: str, device: str = "cpu", clip: str = "", architecture: str = ARCHITECTURE) -> "Aesthetic":
        """Load the predictor, and its CLIP.

        Args:
            source: File of the predictor's weights, or a folder with HEAD_FILE.
            device: Device of the model.
            clip: File, folder or repository of CLIP's weights.
            architecture: open_clip's name of CLIP's architecture.

        Returns:
            The metric.

        Raises:
            MissingWeights: If weights are missing, or of another architecture.
        """
        found = find(source, HEAD_NEEDED, HEAD_FILE)
        try:
            head = build_head(read_weights(found.path))
            return cls(load_open_clip(clip, CLIP_NEEDED, architecture, device=device), head, found.identity)
        except MissingWeights:
            raise
        except ValueError as error:
            raise MissingWeights(f"{source} does not fit: {error}; needed is {HEAD_NEEDED}") from error

    @torch.inference_mode()
    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the scores.

        Args:
            images: sRGB images, uint8 (B, 3, H, W).
            prompts: Not used.

        Returns:
            Scores (B,), float32, mostly between 1 and 10; higher is better.

        Raises:
            ValueError: For other images.
        """
        check_images(images)
        if not len(images):
            return torch.zeros(0)
        pil_images = to_pil_images(images)
        features = self.clip.images(torch.stack([self.transform(image) for image in pil_images]))
        return self.head(features)[:, 0].cpu()
