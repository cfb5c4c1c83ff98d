"""u-prediction pixel baseline with a DDT decoder head (Sec. 6.2, App. B.2).

The backbone is the latent transformer with A^T fused into its first layer, as in AsymFlow, which closes the input gap.
Its last layer is removed: the output of its `norm_out` is one feature per patch. The head, a short and wide
transformer, maps the noisy pixels to the full-rank velocity, conditioned on these features.

The paper gives the number of the head's blocks (2), its attention heads (32), their width (192), and A. The rest is
chosen here:
- Blocks are FLUX.2's single-stream blocks with their own MLP ratio of 3, over image tokens only, without text.
- Each block, and the last norm, is modulated per patch by SiLU(W f), f the backbone's features. These depend on time
  through `norm_out`; the head has no time embedding of its own.
- The input of the head is x_t itself; only the backbone needs k x_t at tau (Eqs. 13-14).
- Rotary positions are the backbone's, over four axes of a quarter of the head width.
- Modulations and the last layer start at zero, the rest at torch's defaults: the first velocity is 0, and blocks start
  as the identity. The first optimizer step changes only the last layer, the second also the modulation of the last
  norm; the features, and with them the backbone, have a gradient from the third on.
"""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import Flux2Transformer2DModel
from diffusers.models.transformers.transformer_flux2 import Flux2PosEmbed, Flux2SingleTransformerBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from asymflow.models.adapted import RECOMPILE_LIMIT, AdaptedModel
from asymflow.models.flux2 import image_positions
from asymflow.models.latent import backbone_of
from asymflow.models.lifted import fused
from asymflow.patches import patchify, unpatchify
from asymflow.schedule import calibrate
from asymflow.subspace import Subspace


class DdtBlock(nn.Module):
    """Transformer block with a condition per token.

    Args:
        heads: Number of attention heads.
        head_width: Width of a head.
        mlp_ratio: Width of the MLP over the width of the block.
        eps: Epsilon of the norms.
    """

    def __init__(self, heads: int, head_width: int, mlp_ratio: float, eps: float):
        super().__init__()
        width = heads * head_width
        self.modulation = _zero_linear(width, 3 * width)  # shift, scale, gate
        self.block = Flux2SingleTransformerBlock(width, heads, head_width, mlp_ratio, eps)

    def forward(self, x: Tensor, condition: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """Apply the block.

        Args:
            x: Tokens (B, N, width).
            condition: Conditions (B, N, width).
            rotary: Cosines and sines of the positions.

        Returns:
            Tokens (B, N, width).
        """
        return self.block(x, None, self.modulation(condition), rotary)


class DdtHead(nn.Module):
    """Decoder head from noisy tokens and features of the same patches to velocity tokens.

    Args:
        patch_dim: Width of a pixel token, D.
        feature_dim: Width of a feature, F.
        blocks: Number of blocks.
        heads: Number of attention heads.
        head_width: Width of a head, a multiple of 8.
        mlp_ratio: Width of the MLP over the width of a block.
        rope_theta: Base of the rotary embedding.
        eps: Epsilon of the norms.

    Raises:
        ValueError: For another head width.
    """

    def __init__(
        self,
        patch_dim: int,
        feature_dim: int,
        blocks: int,
        heads: int,
        head_width: int,
        mlp_ratio: float,
        rope_theta: int,
        eps: float,
    ):
        super().__init__()
        if head_width % 8:
            raise ValueError(f"a head of {head_width} values does not split into four even axes: give a multiple of 8")
        width = heads * head_width
        self.positions = Flux2PosEmbed(rope_theta, [head_width // 4] * 4)
        self.embed = nn.Linear(patch_dim, width)
        self.condition = nn.Linear(feature_dim, width)
        self.blocks = nn.ModuleList(DdtBlock(heads, head_width, mlp_ratio, eps) for _ in range(blocks))
        self.norm_out = nn.LayerNorm(width, eps=eps, elementwise_affine=False)
        self.modulation_out = _zero_linear(width, 2 * width)  # shift, scale
        self.proj_out = _zero_linear(width, patch_dim)
        self.gradient_checkpointing = False

    def forward(self, tokens: Tensor, features: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return the velocity tokens.

        Args:
            tokens: Noisy pixel tokens (B, N, D).
            features: Features of the backbone (B, N, F), of the same dtype.
            grid: Rows and columns of tokens, (h, w).

        Returns:
            u (B, N, D), of the same dtype.
        """
        rotary = self.positions(image_positions(grid, tokens.device))
        x, condition = self.embed(tokens), F.silu(self.condition(features))
        for block in self.blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, condition, rotary, use_reentrant=False)
            else:
                x = block(x, condition, rotary)
        shift, scale = self.modulation_out(condition).chunk(2, dim=-1)
        return self.proj_out((1 + scale) * self.norm_out(x) + shift)


class DdtFlux2(AdaptedModel):
    """DDT baseline: normalized Oklab images in, velocity out, as PixelModel. Build one with `from_latent`.

    Trained are the head, the backbone's `x_embedder` and `norm_out`, and LoRA; the backbone has no `proj_out`.
    """

    head: DdtHead

    @classmethod
    def from_latent(
        cls,
        transformer: Flux2Transformer2DModel,
        subspace: Subspace,
        blocks: int = 2,
        heads: int = 32,
        head_width: int = 192,
        mlp_ratio: float = 3.0,
    ) -> "DdtFlux2":
        """Fuse A^T into the latent transformer's `x_embedder` (Eq. 6) and add a new head.

        The head's initial weights come from torch's global generator.

        Args:
            transformer: The latent transformer. The model keeps and changes it.
            subspace: Subspace of the latent tokens.
            blocks: Number of the head's blocks.
            heads: Number of the head's attention heads.
            head_width: Width of a head, a multiple of 8.
            mlp_ratio: Width of the head's MLP over its width.

        Returns:
            The model.

        Raises:
            ValueError: As in `AdaptedModel`, or for another head width.
        """
        if "ddt" not in backbone_of(transformer).adapter_classes:
            raise ValueError(f"there is no DDT head for a {type(transformer).__name__}; it has FLUX.2's blocks")
        weight, config = transformer.x_embedder.weight, transformer.config
        with weight.device:
            head = DdtHead(
                patch_dim=subspace.A.shape[0],
                feature_dim=transformer.inner_dim,
                blocks=blocks,
                heads=heads,
                head_width=head_width,
                mlp_ratio=mlp_ratio,
                rope_theta=config.rope_theta,
                eps=config.eps,
            )
        model = cls(transformer, subspace)
        model._replace_trained({"x_embedder": fused(weight, subspace.A, after=False), "proj_out": nn.Identity()})
        model.head = head.requires_grad_(True)
        model._use_master_weights(head)
        return model

    def forward(
        self,
        x_t: Tensor,
        sigma: Tensor,
        encoder_hidden_states: Tensor,
        text_mask: Tensor | None = None,
        references: Tensor | None = None,
    ) -> Tensor:
        """Return the velocity of images. The backbone's input is k x_t at tau (Eqs. 13-14); no recovery is needed.

        Args:
            x_t: Noisy images (B, 3, H, W) in normalized Oklab; H and W are multiples of the patch size.
            sigma: Noise levels (B,).
            encoder_hidden_states: Text embeddings (B, T, E).
            text_mask: True for valid text tokens (B, T); None: all are valid.
            references: R clean reference images per image (B, R, 3, H, W) in normalized Oklab; None: there are none.

        Returns:
            u (B, 3, H, W), float32.
        """
        tokens, grid = patchify(x_t.float(), self.patch_size, self.subspace.layout), self._grid(x_t)
        tau, k = calibrate(sigma.float(), self.s)
        scaled, reference_tokens = k[:, None, None] * tokens, self._reference_tokens(references, self.s)
        features = self._run(scaled, tau, encoder_hidden_states, grid, text_mask, reference_tokens)
        u = self.head(tokens.to(features.dtype), features, grid)
        height, width = x_t.shape[-2:]
        return unpatchify(u.float(), height, width, self.patch_size, layout=self.subspace.layout)

    @property
    def head_sizes(self) -> dict[str, int]:
        """Sizes of the head."""
        head_width = sum(self.head.positions.axes_dim)
        heads = self.head.embed.out_features // head_width
        return {"blocks": len(self.head.blocks), "heads": heads, "head_width": head_width}

    def enable_gradient_checkpointing(self) -> None:
        """Checkpoint the blocks of the backbone and of the head."""
        super().enable_gradient_checkpointing()
        self.head.gradient_checkpointing = True

    def compile_blocks(self, **options: Any) -> None:
        """Compile the blocks of the backbone and of the head in place.

        Args:
            **options: Options of torch.compile.
        """
        super().compile_blocks(**options)
        for block in self.head.blocks:
            block.compile(**{"recompile_limit": RECOMPILE_LIMIT, **options})


def _zero_linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
