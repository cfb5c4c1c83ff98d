"""SqueezeNet features for Fréchet distances: weights of 5 MB, for machines that cannot download others."""

import torch
from safetensors.torch import load_file
from torch import Tensor

from asymflow.metrics.protocol import Protocol
from asymflow.metrics.squeeze_file import FILE, NEEDED
from asymflow.metrics.weights import find

_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # lpips' ImageNet normalization of [-1, 1]


class SqueezeFeatures:
    """Compute features of images: the means over positions of SqueezeNet 1.1's last layer.

    Args:
        source: A safetensors file of its `features`, or the folder that contains it.
        device: Device of the network.

    Raises:
        MissingWeights: If the file is missing.
    """

    def __init__(self, source: str, device: str = "cpu"):
        from torchvision.models import squeezenet1_1

        self.network = squeezenet1_1().features
        found = find(source, NEEDED, FILE)
        self.network.load_state_dict({name: t.float() for name, t in load_file(found.path).items()})
        self.network.eval().requires_grad_(False).to(device)
        self.device = device
        self.protocol: Protocol = {"metric": "squeezenet1_1 features", "model": found.identity, "pool": "mean"}

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the features of images.

        Args:
            images: sRGB images, uint8 (B, 3, H, W).

        Returns:
            Features (B, 512), float32 on the CPU.
        """
        x = images.to(self.device).float() / 127.5 - 1
        shift, scale = x.new_tensor(_SHIFT)[:, None, None], x.new_tensor(_SCALE)[:, None, None]
        return self.network((x - shift) / scale).mean((2, 3)).cpu()
