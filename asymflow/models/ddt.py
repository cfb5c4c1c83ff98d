"""The u-prediction pixel baseline with a DDT decoder head (Sec. 6.2, appendix B.2).

The backbone is the latent transformer with A^T fused into its first layer, as in AsymFlow, which closes the input
gap. Its last layer is gone: what its `norm_out` gives are features, one for each patch. The head, a short and wide
transformer, sees the noisy pixels again and turns them into the full-rank velocity under these features.

The paper gives the head's blocks (2), heads (32), their width (192) and A. What it leaves open is chosen here:
- Blocks are FLUX.2's single-stream ones with their own MLP ratio of 3, over the image tokens alone: no text.
- Each block, and the last norm, is modulated patch by patch from SiLU(W f), f the backbone's features. The time
  comes with them: `norm_out` is modulated by it. The head has no time embedding of its own.
- The head is given x_t as it is; only the backbone has to be given k x_t at tau (Eqs. 13-14).
- Rotary positions are the backbone's, over four axes of a quarter of the head width.
- Modulations and the last layer start at zero, the rest as torch has it: the first velocity is 0, and blocks start as
  the identity. So the first step moves only the last layer, and the second also what modulates the last norm; the
  features, and with them the backbone, have a gradient from the third on.
"""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import Flux2Transformer2DModel
from diffusers.models.transformers.transformer_flux2 import Flux2PosEmbed, Flux2SingleTransformerBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from asymflow.models.adapted import RECOMPILE_LIMIT, AdaptedFlux2, image_positions
from asymflow.models.flux2 import fused
from asymflow.patches import patchify, unpatchify
from asymflow.schedule import calibrate
from asymflow.subspace import Subspace


class DdtBlock(nn.Module):
    """A transformer block under conditions of its own for each token."""

    def __init__(self, heads: int, head_width: int, mlp_ratio: float, eps: float):
        super().__init__()
        width = heads * head_width
        self.modulation = _zero_linear(width, 3 * width)  # shift, scale, gate
        self.block = Flux2SingleTransformerBlock(width, heads, head_width, mlp_ratio, eps)

    def forward(self, x: Tensor, condition: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """x and condition (B, N, width) -> (B, N, width)."""
        return self.block(x, None, self.modulation(condition), rotary)


class DdtHead(nn.Module):
    """Noisy tokens (B, N, D) and features (B, N, F) of the same patches -> velocity tokens (B, N, D)."""

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
        """The tokens fill a grid (h, w); all in one type, which is also the answer's."""
        rotary = self.positions(image_positions(grid, tokens.device))
        x, condition = self.embed(tokens), F.silu(self.condition(features))
        for block in self.blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, condition, rotary, use_reentrant=False)
            else:
                x = block(x, condition, rotary)
        shift, scale = self.modulation_out(condition).chunk(2, dim=-1)
        return self.proj_out((1 + scale) * self.norm_out(x) + shift)


class DdtFlux2(AdaptedFlux2):
    """The DDT baseline: normalised Oklab images in, velocity out, as PixelFlux2. Build one with `from_latent`.

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
        """Fuse A^T into the latent transformer's `x_embedder` (Eq. 6) and put a new head on it.

        The transformer is taken over and changed. The head's weights are drawn from torch's global generator.

        Raises:
            ValueError: as `AdaptedFlux2` does, or the head width is no multiple of 8.
        """
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
        model._train_instead(x_embedder=fused(weight, subspace.A, after=False), proj_out=nn.Identity())
        model.head = head.requires_grad_(True)
        model._keep_masters(head)
        return model

    def forward(
        self, x_t: Tensor, sigma: Tensor, encoder_hidden_states: Tensor, text_mask: Tensor | None = None
    ) -> Tensor:
        """x_t (B, 3, H, W) normalised Oklab at sigma (B,) -> velocity u of the same shape, float32.

        The backbone is given k x_t at tau (Eqs. 13-14); there is nothing to recover. H and W are multiples of the
        patch size.
        """
        tokens, grid = patchify(x_t.float(), self.patch_size, self.subspace.layout), self._grid(x_t)
        tau, k = calibrate(sigma.float(), self.s)
        features = self._run(k[:, None, None] * tokens, tau, encoder_hidden_states, grid, text_mask)
        u = self.head(tokens.to(features.dtype), features, grid)
        height, width = x_t.shape[-2:]
        return unpatchify(u.float(), height, width, self.patch_size, layout=self.subspace.layout)

    def enable_gradient_checkpointing(self) -> None:
        """Of the backbone's blocks and of the head's."""
        super().enable_gradient_checkpointing()
        self.head.gradient_checkpointing = True

    def compile_blocks(self, **options: Any) -> None:
        """The backbone's and the head's; `options` are those of torch.compile."""
        super().compile_blocks(**options)
        for block in self.head.blocks:
            block.compile(**{"recompile_limit": RECOMPILE_LIMIT, **options})


def _zero_linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
