"""JiT, the plain transformer over pixel patches for class-conditional images, and the AsymFlow model around it.

The network is that of "Back to basics: let denoising generative models denoise" (Li & He), reference [35] of the paper:
bottleneck patch embedding, class tokens in context from a given block on, RMSNorm, SwiGLU, qk-norm, rotary embedding,
dropout in the middle half, zero-initialized modulation and output. Tokens are packed channel last.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from asymflow.models.jit_config import SIZES as SIZES
from asymflow.models.jit_config import JiTConfig as JiTConfig
from asymflow.models.jit_positions import FREQUENCIES, positions, rotate, rotations, wave
from asymflow.parameterization import recover_u
from asymflow.patches import patchify, unpatchify
from asymflow.schedule import calibrate, expand_sigma
from asymflow.subspace import Subspace

LAYOUT = "channel_last"


class Attention(nn.Module):
    """Self-attention with qk-norm and rotary embedding.

    Args:
        config: Shapes of the network.
        dropout: Dropout of the output.
    """

    def __init__(self, config: JiTConfig, dropout: float):
        super().__init__()
        self.heads, self.float32 = config.heads, config.attention_float32
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.q_norm, self.k_norm = (nn.RMSNorm(config.head_width, eps=1e-6) for _ in range(2))
        self.proj = nn.Linear(config.width, config.width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, rotation: Tensor) -> Tensor:
        """Apply the layer.

        Args:
            x: Tokens (B, N, width).
            rotation: Result of `rotations` for these tokens.

        Returns:
            Tokens (B, N, width).
        """
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = rotate(self.q_norm(q), rotation), rotate(self.k_norm(k), rotation)
        dtype = torch.promote_types(v.dtype, torch.float32) if self.float32 else v.dtype
        with torch.autocast(x.device.type, enabled=False):
            mixed = F.scaled_dot_product_attention(q.to(dtype), k.to(dtype), v.to(dtype))
        return self.dropout(self.proj(mixed.to(v.dtype).transpose(1, 2).flatten(2)))


class SwiGLU(nn.Module):
    """Gated MLP, W_out (SiLU(W_gate x) * W_value x).

    Args:
        config: Shapes of the network.
        dropout: Dropout of the hidden values.
    """

    def __init__(self, config: JiTConfig, dropout: float):
        super().__init__()
        self.gate_and_value = nn.Linear(config.width, 2 * config.hidden)
        self.out = nn.Linear(config.hidden, config.width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer.

        Args:
            x: Tokens (B, N, width).

        Returns:
            Tokens (B, N, width).
        """
        gate, value = self.gate_and_value(x).chunk(2, dim=-1)
        return self.out(self.dropout(F.silu(gate) * value))


class Modulation(nn.Module):
    """Modulation vectors of a condition (adaLN); zero at first.

    Args:
        width: Width of a vector.
        parts: Number of vectors.
    """

    def __init__(self, width: int, parts: int):
        super().__init__()
        self.parts = parts
        self.linear = nn.Linear(width, parts * width)

    def forward(self, condition: Tensor) -> tuple[Tensor, ...]:
        """Return the modulation vectors.

        Args:
            condition: Conditions (B, width).

        Returns:
            `parts` vectors (B, 1, width).
        """
        return self.linear(F.silu(condition))[:, None].chunk(self.parts, dim=-1)


class Block(nn.Module):
    """Transformer block with adaLN modulation.

    Args:
        config: Shapes of the network.
        dropout: Dropout of attention and MLP.
    """

    def __init__(self, config: JiTConfig, dropout: float):
        super().__init__()
        self.norm1, self.norm2 = (nn.RMSNorm(config.width, eps=1e-6) for _ in range(2))
        self.attention = Attention(config, dropout)
        self.mlp = SwiGLU(config, dropout)
        self.modulation = Modulation(config.width, 6)

    def forward(self, x: Tensor, condition: Tensor, rotation: Tensor) -> Tensor:
        """Apply the block.

        Args:
            x: Tokens (B, N, width).
            condition: Conditions (B, width).
            rotation: Result of `rotations` for these tokens.

        Returns:
            Tokens (B, N, width).
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)
        x = x + gate1 * self.attention(self.norm1(x) * (1 + scale1) + shift1, rotation)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class Output(nn.Module):
    """Last layer: modulated norm and projection to patches.

    Args:
        config: Shapes of the network.
    """

    def __init__(self, config: JiTConfig):
        super().__init__()
        self.norm = nn.RMSNorm(config.width, eps=1e-6)
        self.modulation = Modulation(config.width, 2)
        self.linear = nn.Linear(config.width, config.patch_dim)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Apply the layer.

        Args:
            x: Tokens (B, N, width).
            condition: Conditions (B, width).

        Returns:
            Tokens (B, N, D).
        """
        shift, scale = self.modulation(condition)
        return self.linear(self.norm(x) * (1 + scale) + shift)


class JiT(nn.Module):
    """Class-conditional transformer from pixel tokens to pixel tokens.

    Args:
        config: Shapes of the network.
    """

    def __init__(self, config: JiTConfig):
        super().__init__()
        self.config = config
        width = config.width
        self.to_bottleneck = nn.Linear(config.patch_dim, config.bottleneck, bias=False)
        self.from_bottleneck = nn.Linear(config.bottleneck, width)
        self.time = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(config.classes + 1, width)
        if config.context_tokens:
            self.context_positions = nn.Parameter(torch.empty(config.context_tokens, width))
        first, last = config.depth // 4, config.depth // 4 * 3
        self.blocks = nn.ModuleList(
            Block(config, config.dropout if first <= i < last else 0.0) for i in range(config.depth)
        )
        self.output = Output(config)
        self.checkpointing = False
        self._initialize()

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in (*self.time, self.label):
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        if self.config.context_tokens:
            nn.init.normal_(self.context_positions, std=0.02)
        for module in self.modules():
            if isinstance(module, Modulation):
                nn.init.zeros_(module.linear.weight)
        nn.init.zeros_(self.output.linear.weight)

    @torch.no_grad()
    def begin_with_basis(self, A: Tensor) -> None:
        """Set the first r values of the bottleneck to the coordinates in a basis, as many of them as it has.

        Args:
            A: Basis (D, r).
        """
        rank = min(A.shape[1], self.config.bottleneck)
        self.to_bottleneck.weight[:rank] = A[:, :rank].T.to(self.to_bottleneck.weight)

    def forward(
        self, tokens: Tensor, t: Tensor, labels: Tensor, grid: tuple[int, int], features_after: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Apply the network.

        Args:
            tokens: Noisy pixel tokens (B, N, D).
            t: Data times (B,), t = 1 - sigma: 0 for noise, 1 for data.
            labels: Classes (B,); `config.classes` stands for no class.
            grid: Rows and columns of tokens, (h, w).
            features_after: Number of blocks whose output is returned as features (REPA); None: no features.

        Returns:
            Output tokens (B, N, D), and features (B, N, width) or None.
        """
        config, features = self.config, None
        x = self.from_bottleneck(self.to_bottleneck(tokens))
        x = x + positions(config.width, grid, x.device).to(x.dtype)
        label = self.label(labels)
        condition = self.time(wave(t.to(label.dtype))) + label
        rotation = rotations(config.head_width, grid, x.device).to(label.dtype)
        context = 0
        for i, block in enumerate(self.blocks):
            if config.context_tokens and i == config.context_from:
                context = config.context_tokens
                # not cast to the products' type: under autocast, tokens are summed in float32 from here on, as in the
                # published model
                x = torch.cat([label[:, None] + self.context_positions, x], dim=1)
                still = rotation.new_tensor([1.0, 0.0])[:, None, None].expand(2, context, rotation.shape[-1])
                rotation = torch.cat([still, rotation], dim=1)
            if self.checkpointing and self.training:
                x = checkpoint(block, x, condition, rotation, use_reentrant=False)
            else:
                x = block(x, condition, rotation)
            if i + 1 == features_after:
                features = x[:, context:]
        return self.output(x[:, context:], condition), features


class PixelJiT(nn.Module):
    """Class-conditional pixel model of rank r (Sec. 4): the network predicts u_A, the model u.

    Rank 0 predicts x_0 (up to sign, Eq. 31), which is JiT exactly; rank D predicts u. Images are in the subspace's
    color space.

    Args:
        config: Shapes of the network.
        subspace: Subspace of the patches, packed channel last, of scale 1.
        sigma_floor_sample: Lower bound of sigma in the recovery, when sampling.
        noise_scale: Standard deviation of the noise that the network is given. Images always have noise of standard
            deviation 1; the network gets them rescaled, at the time of the same signal-to-noise ratio.

    Raises:
        ValueError: If the subspace does not fit the network's patches and their packing, or the noise scale is not
            above 0.
    """

    A: Tensor

    def __init__(
        self, config: JiTConfig, subspace: Subspace, sigma_floor_sample: float = 4e-2, noise_scale: float = 1.0
    ):
        super().__init__()
        if subspace.layout != LAYOUT or subspace.patch_dim != config.patch_dim or subspace.s != 1:
            raise ValueError(
                f"a basis of {subspace.patch_dim} values packed {subspace.layout}, scale {subspace.s:g}; needed are "
                f"{config.patch_dim} packed {LAYOUT}, scale 1"
            )
        if noise_scale <= 0:
            raise ValueError(f"noise_scale is {noise_scale}; it must be above 0")
        self.config, self.subspace, self.sigma_floor_sample = config, subspace, sigma_floor_sample
        self.noise_scale = noise_scale
        self.network = JiT(config)
        self.network.begin_with_basis(subspace.A)
        self.register_buffer("A", subspace.A.float().clone(), persistent=False)
        self.projector: nn.Module | None = None
        self.features_after: int | None = None
        self.products: torch.dtype | None = None

    def add_projector(self, block: int, features: int, width: int = 2048) -> None:
        """Add the projector of REPA: three layers from the features of a block.

        Args:
            block: Number of blocks before the features.
            features: Width of the encoder's features.
            width: Width of the hidden layers.
        """
        layers = nn.Linear(self.config.width, width), nn.Linear(width, width), nn.Linear(width, features)
        self.projector = nn.Sequential(layers[0], nn.SiLU(), layers[1], nn.SiLU(), layers[2])
        self.features_after = block

    def set_precision(self, dtype: torch.dtype) -> None:
        """Set the type of the network's products; weights and the recovery stay in float32.

        Args:
            dtype: Type of the products.
        """
        self.products = None if dtype == torch.float32 else dtype

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return self.config.patch_size

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the trained parameters.

        Returns:
            Parameters by name.
        """
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def predict(
        self, tokens: Tensor, sigma: Tensor, labels: Tensor, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor | None]:
        """Predict the asymmetric velocity.

        Args:
            tokens: Noisy pixel tokens (B, N, D).
            sigma: Noise levels (B,).
            labels: Classes (B,); `config.classes` stands for no class.
            grid: Rows and columns of tokens, (h, w).

        Returns:
            u_a_hat (B, N, D), and the projected features (B, N, features), or None without a projector.
        """
        network_tokens, tau = tokens, sigma
        if self.noise_scale != 1:
            # n k x_t = (1 - tau) x_0 + tau n noise: the sample that noise of standard deviation n gives at tau
            tau, k = calibrate(sigma, self.noise_scale)
            network_tokens = tokens * expand_sigma(self.noise_scale * k, tokens).to(tokens.dtype)
        with torch.autocast(tokens.device.type, self.products, enabled=self.products is not None):
            u_a_hat, features = self.network(network_tokens, 1 - tau, labels, grid, self.features_after)
        if self.projector is not None and features is not None:  # outside autocast: it computes in float32
            features = self.projector(features.to(next(self.projector.parameters()).dtype))
        return u_a_hat.to(tokens.dtype), features

    def forward(self, x_t: Tensor, sigma: Tensor, labels: Tensor, sigma_floor: float | None = None) -> Tensor:
        """Return the velocity of images, for sampling (Eq. 5).

        Args:
            x_t: Noisy images (B, 3, H, W).
            sigma: Noise levels (B,).
            labels: Classes (B,); `config.classes` stands for no class.
            sigma_floor: Lower bound of sigma in the recovery; None: `sigma_floor_sample`.

        Returns:
            u (B, 3, H, W).
        """
        height, width = x_t.shape[-2:]
        tokens = patchify(x_t, self.patch_size, LAYOUT)
        u_a_hat, _ = self.predict(tokens, sigma, labels, (height // self.patch_size, width // self.patch_size))
        floor = self.sigma_floor_sample if sigma_floor is None else sigma_floor
        u = recover_u(u_a_hat, tokens, sigma, self.A, sigma_floor=floor)
        return unpatchify(u, height, width, self.patch_size, layout=LAYOUT)
