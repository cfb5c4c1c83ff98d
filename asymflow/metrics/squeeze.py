"""Features of a SqueezeNet: a space for Fréchet distances where no weights can be fetched, as small as it is."""

import torch
from safetensors.torch import load_file
from torch import Tensor

from asymflow.metrics.protocol import Protocol
from asymflow.metrics.squeeze_file import FILE, NEEDED
from asymflow.metrics.weights import find

_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # lpips' ImageNet normalisation of [-1, 1]


class SqueezeFeatures:
    """uint8 pictures (B, 3, H, W) to the means over places of the last layer, (B, 512) float32.

    `source` is a safetensors file of SqueezeNet 1.1's `features`, or the folder it lies in. Raises MissingWeights where
    there is none.
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
        x = images.to(self.device).float() / 127.5 - 1
        shift, scale = x.new_tensor(_SHIFT)[:, None, None], x.new_tensor(_SCALE)[:, None, None]
        return self.network((x - shift) / scale).mean((2, 3)).cpu()
