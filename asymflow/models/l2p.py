"""L2P baseline: a latent transformer moved into pixel space by its outer layers alone (arXiv:2605.12013).

The latent tokens give way to patches of pixels of the same grid, embedded by a new layer. The intermediate blocks stay
frozen; the first and the last ones are trained whole, without LoRA. Instead of the last layer, a small U-Net over the
noisy image, the detailer, predicts the velocity: it has the resolution of a token at its bottleneck, where it takes in
the transformer's output. Sampling and the flow matching loss are those of the source model.

From the paper, as its readers and ports of its code report it: patches of 16 pixels; the detailer's channels 64, 128,
256 and 512, from 512 + F at the bottleneck, convolutions of 3 x 3 with SiLU, no norms; max pooling and enlargement by
copies; training images sampled from the source model itself, about 20,000; a training of five blocks better than one
of ten or of all. The rest is chosen here:
- Images are in normalized Oklab as those of the other pixel models, not in sRGB.
- The features come after the last norm, whose modulation is trained. The published code takes those before it.
- First and last blocks are counted along the image tokens, including Z-Image's noise refiner. Layers of the last block
  that only serve the text are not trained.
- New layers have torch's default initial values.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from asymflow.models.adapted import AdaptedModel
from asymflow.models.l2p_network import detailer_channels, shallow_layers
from asymflow.models.latent import backbone_of
from asymflow.patches import patchify
from asymflow.subspace import Subspace


class Detailer(nn.Module):
    """U-Net from the noisy image and one feature per patch to the velocity.

    Args:
        patch_size: Side of a patch in pixels, a power of two.
        features: Width of a feature, F.
        channels: Channels at full resolution.

    Raises:
        ValueError: For another patch size.
    """

    def __init__(self, patch_size: int, features: int, channels: int):
        super().__init__()
        widths = detailer_channels(patch_size, channels)
        self.channels = channels
        self.encode = nn.ModuleList(_convolution(*pair) for pair in zip((3, *widths[:-1]), widths, strict=True))
        self.fuse = nn.Conv2d(widths[-1] + features, widths[-1], 1)
        above = (widths[0], *widths[:-1])
        self.expand = nn.ModuleList(_convolution(width, width) for width in widths)
        self.decode = nn.ModuleList(_convolution(2 * width, after) for width, after in zip(widths, above, strict=True))
        self.last = nn.Conv2d(widths[0], 3, 1)
        self.gradient_checkpointing = False

    def forward(self, images: Tensor, features: Tensor) -> Tensor:
        """Return the velocity.

        Args:
            images: Noisy images (B, 3, H, W).
            features: Features (B, F, H / patch_size, W / patch_size), of the same dtype.

        Returns:
            u (B, 3, H, W), of the same dtype.
        """
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(self._run, images, features, use_reentrant=False)
        return self._run(images, features)

    def _run(self, images: Tensor, features: Tensor) -> Tensor:
        x, skipped = images, []
        for layer in self.encode:
            skipped.append(F.silu(layer(x)))
            x = F.max_pool2d(skipped[-1], 2)
        x = F.silu(self.fuse(torch.cat([x, features], dim=1)))
        for expand, decode, skip in zip(reversed(self.expand), reversed(self.decode), reversed(skipped), strict=True):
            x = expand(F.interpolate(x, scale_factor=2, mode="nearest"))
            x = F.silu(decode(torch.cat([x, skip], dim=1)))
        return self.last(x)


class L2pModel(AdaptedModel):
    """L2P baseline: normalized Oklab images in, velocity out, as PixelModel. Build one with `from_latent`.

    Trained are the first layer, the first and last blocks, the modulation of the last norm, and the detailer. The
    subspace serves the teacher, and gives the size of patches and the color space.
    """

    blocks: int
    """Number of trained blocks at each end"""
    detailer: Detailer

    @classmethod
    def from_latent(cls, transformer: Any, subspace: Subspace, blocks: int = 3, channels: int = 64) -> "L2pModel":
        """Give a latent transformer a new first layer and a detailer, and train its outer blocks.

        Initial values of new layers come from torch's global generator.

        Args:
            transformer: The latent transformer. The model keeps and changes it.
            subspace: Subspace of the latent tokens.
            blocks: Number of trained blocks at each end.
            channels: Channels of the detailer at full resolution.

        Returns:
            The model.

        Raises:
            ValueError: As in `AdaptedModel`, if the transformer has fewer blocks, or the patch size is not a power of
                two.
        """
        backbone = backbone_of(transformer)
        pattern = shallow_layers(backbone, transformer.config, blocks)
        shallow = [
            name
            for name, module in transformer.named_modules()
            if pattern.fullmatch(name) and next(module.parameters(recurse=False), None) is not None
        ]
        model = cls(transformer, subspace, shallow)
        model.blocks = blocks
        first, last = (model.latent_layer(name) for name in (backbone.first, backbone.last))
        with first.weight.device:
            embedding = nn.Linear(subspace.A.shape[0], first.out_features, bias=first.bias is not None)
            detailer = Detailer(subspace.patch_size, last.in_features, channels)
        model._replace_trained({name: copy.deepcopy(model.latent_layer(name)) for name in shallow})
        model._replace_trained({backbone.first: embedding, backbone.last: _Features(last.in_features)})
        model.detailer = detailer.requires_grad_(True)
        model._use_master_weights(detailer)
        return model

    def forward(
        self,
        x_t: Tensor,
        sigma: Tensor,
        encoder_hidden_states: Tensor,
        text_mask: Tensor | None = None,
        references: Tensor | None = None,
    ) -> Tensor:
        """Return the velocity of images. sigma is the source model's own noise level, without calibration.

        Args:
            x_t: Noisy images (B, 3, H, W) in normalized Oklab; H and W are multiples of the patch size.
            sigma: Noise levels (B,).
            encoder_hidden_states: Text embeddings (B, T, E).
            text_mask: True for valid text tokens (B, T); None: all are valid.
            references: R clean reference images per image (B, R, 3, H, W) in normalized Oklab; None: there are none.

        Returns:
            u (B, 3, H, W), float32.
        """
        grid = self._grid(x_t)
        tokens = patchify(x_t.float(), self.patch_size, self.subspace.layout)
        reference_tokens = self._reference_tokens(references, 1.0)
        features = self._run(tokens, sigma.float(), encoder_hidden_states, grid, text_mask, reference_tokens)
        return self.detailer(x_t.to(features.dtype), features.mT.unflatten(2, grid)).float()

    def enable_gradient_checkpointing(self) -> None:
        """Checkpoint the blocks of the transformer and the detailer."""
        super().enable_gradient_checkpointing()
        self.detailer.gradient_checkpointing = True

    @property
    def head_sizes(self) -> dict[str, int]:
        """Trained blocks at each end, and the detailer's channels."""
        return {"blocks": self.blocks, "channels": self.detailer.channels}


class _Features(nn.Identity):
    """Last layer that returns the transformer's features.

    Args:
        width: Width of a feature, which families read as they read that of a last layer.
    """

    def __init__(self, width: int):
        super().__init__()
        self.out_features = width


def _convolution(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)
