"""The Inception network of 2015 that defines FID, in torchvision's blocks, and NVIDIA's TorchScript of it.

It differs from torchvision's pretrained network: it has 1008 outputs, its average pools do not count padding, its last
block has a maximum pool, and images are resized as by TensorFlow 1.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.inception import (
    BasicConv2d,
    Inception3,
    InceptionA,
    InceptionAux,
    InceptionB,
    InceptionC,
    InceptionD,
    InceptionE,
)

from asymflow.metrics.image_rules import SIDE

CLASSES = 1008
_STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "maxpool1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "maxpool2")
_FIRST = ("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c")
_REST = ("Mixed_6d", "Mixed_6e", "Mixed_7a", "Mixed_7b", "Mixed_7c")
_SPATIAL = 7  # channels

Features = tuple[Tensor, Tensor, Tensor | None]
"""pool3 (B, 2048), logits (B, 1008) without bias, and spatial features (B, 2023) or None"""


def resize_like_tensorflow1(images: Tensor, side: int = SIDE) -> Tensor:
    """Resize images bilinearly as TensorFlow 1 does, without half-pixel centers or antialiasing.

    Output i is at i * H / side.

    Args:
        images: Images (B, C, H, W), floating-point.
        side: Side of the result in pixels.

    Returns:
        Images (B, C, side, side).
    """
    for axis in (3, 2):
        size = images.shape[axis]
        if size == side:
            continue
        position = torch.arange(side, dtype=torch.float32, device=images.device) * (size / side)
        low = position.long().clamp_max(size - 1)
        share = (position - low).to(images.dtype).view(-1, *[1] * (3 - axis))
        first, second = images.index_select(axis, low), images.index_select(axis, (low + 1).clamp_max(size - 1))
        images = first + (second - first) * share
    return images


class Inception2015(Inception3):
    """The network in torchvision's blocks, with the names of torch-fidelity's converted weights."""

    def __init__(self) -> None:
        blocks = [BasicConv2d, _A, InceptionB, _C, InceptionD, _E, InceptionAux]
        super().__init__(num_classes=CLASSES, aux_logits=False, init_weights=False, inception_blocks=blocks)
        self.Mixed_7c.maximum = True  # of the two blocks E only the last
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Features:
        """Return the features of images.

        Args:
            images: Images, uint8 (B, 3, H, W).

        Returns:
            pool3, logits and spatial features.
        """
        x = (resize_like_tensorflow1(images.to(self.fc.weight.dtype)) - 128) / 128
        for name in _STEM + _FIRST:
            x = getattr(self, name)(x)
        # The TensorFlow graph has channels last, and so do the references' `mu_s` and `sigma_s`. The branch is computed
        # once more for it, below 1 % of the work.
        spatial = self.Mixed_6d.branch1x1(x)[:, :_SPATIAL].permute(0, 2, 3, 1).flatten(1)
        for name in _REST:
            x = getattr(self, name)(x)
        pool = x.mean((2, 3))
        return pool, _logits(pool, self.fc.weight), spatial


class ScriptedInception(nn.Module):
    """NVIDIA's inception-2015-12-05.pt, which returns pool3 for uint8 images and `return_features`.

    The logits are computed from pool3 with its `output.weight`, which saves a second pass. There are no spatial
    features.

    Args:
        script: The TorchScript.

    Raises:
        ValueError: If it has no such output.
    """

    def __init__(self, script: nn.Module):
        super().__init__()
        weight = script.state_dict().get("output.weight")
        if weight is None or weight.ndim != 2 or len(weight) != CLASSES:
            raise ValueError(f"this TorchScript has no output.weight ({CLASSES}, features): it is not NVIDIA's")
        self.script = script.eval()

    def forward(self, images: Tensor) -> Features:
        """Return the features of images.

        Args:
            images: Images, uint8 (B, 3, H, W).

        Returns:
            pool3, logits and None.
        """
        pool = self.script(images, return_features=True)
        return pool, _logits(pool, self.script.state_dict()["output.weight"]), None


def _logits(pool: Tensor, weight: Tensor) -> Tensor:
    return pool.double() @ weight.double().T  # in double no setting of the process rounds it to TF32


def _chain(x: Tensor, *layers: nn.Module) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class _A(InceptionA):
    def _forward(self, x: Tensor) -> list[Tensor]:
        return [
            self.branch1x1(x),
            _chain(x, self.branch5x5_1, self.branch5x5_2),
            _chain(x, self.branch3x3dbl_1, self.branch3x3dbl_2, self.branch3x3dbl_3),
            self.branch_pool(_average(x)),
        ]


class _C(InceptionC):
    def _forward(self, x: Tensor) -> list[Tensor]:
        return [
            self.branch1x1(x),
            _chain(x, *(getattr(self, f"branch7x7_{i}") for i in (1, 2, 3))),
            _chain(x, *(getattr(self, f"branch7x7dbl_{i}") for i in (1, 2, 3, 4, 5))),
            self.branch_pool(_average(x)),
        ]


class _E(InceptionE):
    maximum = False

    def _forward(self, x: Tensor) -> list[Tensor]:
        single = self.branch3x3_1(x)
        double = _chain(x, self.branch3x3dbl_1, self.branch3x3dbl_2)
        pooled = F.max_pool2d(x, 3, stride=1, padding=1) if self.maximum else _average(x)
        return [
            self.branch1x1(x),
            self.branch3x3_2a(single),
            self.branch3x3_2b(single),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
            self.branch_pool(pooled),
        ]
