"""JiT by its published names, written again without our code, in float64."""

import math

import torch
import torch.nn.functional as F

from asymflow.models.jit_config import JiTConfig
from asymflow.models.jit_positions import positions
from asymflow.models.jit_weights import BASIS, SCALE, published_shapes
from asymflow.subspace import random_basis

TINY = JiTConfig(
    width=32, depth=4, heads=2, bottleneck=20, context_from=1, context_tokens=3, patch_size=4, classes=5
)  # fmt: skip
SIDE = 12
"""Of the images, in pixels"""


def random_tensors(config: JiTConfig, kind: str, rank: int = 5, seed: int = 0) -> dict:
    """A published file of random float64 weights: at initialization, its zeros would hide errors."""
    generator = torch.Generator().manual_seed(seed)
    spread = 1 / math.sqrt(config.width)
    tensors = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64) * spread
        for name, shape in published_shapes(config).items()
    }
    for name in tensors:
        if "norm" in name:
            tensors[name] += 1
    if kind == "asymflow":
        tensors |= {BASIS: random_basis(config.patch_dim, rank, seed), SCALE: torch.tensor(1.0, dtype=torch.float64)}
    return tensors


def batch(seed: int = 1):
    generator = torch.Generator().manual_seed(seed)
    x_t = torch.randn(3, 3, SIDE, SIDE, generator=generator, dtype=torch.float64)
    return x_t, torch.tensor([0.07, 0.4, 0.97]).double(), torch.tensor([0, 4, 5])


def linear(tensors, name, x):
    return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]


def rms_norm(tensors, name, x):
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * tensors[f"{name}.weight"]


def turned(x, angles):
    """Multiply pairs of values, as complex numbers, by e^(i angle)."""
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


def published_network(tensors, config: JiTConfig, x, t, y):
    """The published network by its own names: a convolution, attention written out, complex rotations."""
    side = x.shape[-1] // config.patch_size
    frequencies = torch.exp(-math.log(10_000) * torch.arange(128, dtype=torch.float64) / 128)
    angles = t[:, None] * frequencies
    time = linear(tensors, "t_embedder.mlp.0", torch.cat([angles.cos(), angles.sin()], dim=1))
    time = linear(tensors, "t_embedder.mlp.2", F.silu(time))
    label = tensors["y_embedder.embedding_table.weight"][y]
    condition = F.silu(time + label)
    x = F.conv2d(x, tensors["x_embedder.proj1.weight"], stride=config.patch_size)
    x = F.conv2d(x, tensors["x_embedder.proj2.weight"], tensors["x_embedder.proj2.bias"])
    x = x.flatten(2).transpose(1, 2) + positions(config.width, (side, side), x.device)
    pairs = config.head_width // 4
    steps = 10_000.0 ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
    row, column = torch.meshgrid(torch.arange(side).double(), torch.arange(side).double(), indexing="ij")
    turns = torch.cat([row.reshape(-1, 1) * steps, column.reshape(-1, 1) * steps], dim=1)
    for i in range(config.depth):
        if config.context_tokens and i == config.context_from:
            x = torch.cat([label[:, None] + tensors["in_context_posemb"], x], dim=1)
            turns = torch.cat([torch.zeros(config.context_tokens, 2 * pairs).double(), turns])
        block = f"blocks.{i}"
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = (
            part[:, None] for part in linear(tensors, f"{block}.adaLN_modulation.1", condition).chunk(6, dim=1)
        )
        inner = rms_norm(tensors, f"{block}.norm1", x) * (1 + scale_1) + shift_1
        heads = linear(tensors, f"{block}.attn.qkv", inner).unflatten(-1, (3, config.heads, -1))
        q, k, v = (heads[:, :, j].transpose(1, 2) for j in range(3))
        q, k = turned(rms_norm(tensors, f"{block}.attn.q_norm", q), turns), turned(
            rms_norm(tensors, f"{block}.attn.k_norm", k), turns
        )  # fmt: skip
        mixed = torch.softmax(q @ k.mT / math.sqrt(config.head_width), dim=-1) @ v
        x = x + gate_1 * linear(tensors, f"{block}.attn.proj", mixed.transpose(1, 2).flatten(2))
        inner = rms_norm(tensors, f"{block}.norm2", x) * (1 + scale_2) + shift_2
        gate, value = linear(tensors, f"{block}.mlp.w12", inner).chunk(2, dim=-1)
        x = x + gate_2 * linear(tensors, f"{block}.mlp.w3", F.silu(gate) * value)
    if config.context_tokens:
        x = x[:, config.context_tokens :]
    shift, scale = (part[:, None] for part in linear(tensors, "final_layer.adaLN_modulation.1", condition).chunk(2, 1))
    x = linear(tensors, "final_layer.linear", rms_norm(tensors, "final_layer.norm_final", x) * (1 + scale) + shift)
    x = x.view(-1, side, side, config.patch_size, config.patch_size, 3)
    return torch.einsum("bhwpqc->bchpwq", x).reshape(len(x), 3, SIDE, SIDE)


def published_velocity(tensors, config: JiTConfig, kind: str, x_t, sigma, y):
    """u by the published conventions: JiT's x_0 from the time of the data, or AsymFlow's u_A from sigma, recovered."""
    wide = sigma[:, None, None, None]
    if kind == "jit":
        return (x_t - published_network(tensors, config, x_t, 1 - sigma, y)) / wide
    p, A = config.patch_size, tensors[BASIS]

    def inside(images):
        cut = images.unflatten(2, (-1, p)).unflatten(-1, (-1, p))  # (B, c, h, p, w, q)
        tokens = cut.permute(0, 2, 4, 3, 5, 1).flatten(3)
        tokens = tokens @ A @ A.T
        return tokens.unflatten(3, (p, p, 3)).permute(0, 5, 1, 3, 2, 4).reshape(images.shape)

    u_a = published_network(tensors, config, x_t, sigma, y)
    return inside(u_a) + (x_t - inside(x_t) + u_a - inside(u_a)) / wide
