"""Matrices of a FLUX.2 transformer and their cost in floating-point operations, from shapes alone.

A multiplication and an addition are two operations (FLOPs). Counted are linear layers, 2 x inputs x outputs per token,
and the two products of attention, 4 x width x tokens^2 in all; norms, rotations and activations (below 1 %) are not.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

LORA_TARGETS = (  # appendix B.2
    r"transformer_blocks\.\d+\.(ff|ff_context)\.linear_(in|out)"
    r"|time_guidance_embed\.timestep_embedder\.linear_[12]"
    r"|single_transformer_blocks\.\d+\.attn\.to_out"
)
"""Names of the layers that LoRA adapts"""

KLEIN_9B: dict[str, Any] = {
    "in_channels": 128,
    "num_layers": 8,
    "num_single_layers": 24,
    "num_attention_heads": 32,
    "attention_head_dim": 128,
    "joint_attention_dim": 12288,
    "timestep_guidance_channels": 256,
    "mlp_ratio": 3.0,
    "axes_dims_rope": (32, 32, 32, 32),
    "rope_theta": 2000,
    "eps": 1e-6,
    "guidance_embeds": False,
}
"""Settings of Flux2Transformer2DModel for FLUX.2 klein Base 9B, as published"""

DDT_MLP_RATIO = 3
"""MLP ratio of DdtFlux2's head, whatever the backbone's"""

Stream = Literal["image", "text", "both", "one"]
"""Input of a layer: image tokens, text tokens, both, or one vector per image (the conditions)"""


class Linear(NamedTuple):
    """Linear layer, by its name in the model."""

    name: str
    """Name in the model"""
    inputs: int
    """Width of the input"""
    outputs: int
    """Width of the output"""
    stream: Stream
    """Tokens that pass the layer"""
    first: bool = False
    """No trained layer comes before it, so it passes no gradient on"""
    trained: bool = False
    """Whether the matrix is trained"""


class Attention(NamedTuple):
    """Attention of a block, all heads together."""

    width: int
    """Width of all heads together"""
    stream: Stream
    """Tokens that attend to each other"""


@dataclass(frozen=True)
class Network:
    """Layers that an evaluation of one image passes through."""

    linears: tuple[Linear, ...]
    """Linear layers, in order"""
    attentions: tuple[Attention, ...]
    """Attentions, in order"""

    def __add__(self, other: "Network") -> "Network":
        return Network(self.linears + other.linears, self.attentions + other.attentions)


class Flops(NamedTuple):
    """Floating-point operations per image."""

    forward: float
    """Forward pass"""
    backward: float
    """Gradients of activations, back to the first trained layer, and of the trained matrices"""
    recomputed: float
    """Operations that gradient checkpointing repeats: the blocks"""


def network(config: Mapping[str, Any], patch_dim: int | None = None, lora_rank: int = 0, head: bool = False) -> Network:
    """Return the matrices of a transformer.

    Args:
        config: Settings of Flux2Transformer2DModel.
        patch_dim: Width of a token; the three modules are trained, as in PixelFlux2 (in LatentFlux2, for the
            transformer's own width). None: the frozen latent model.
        lora_rank: Rank of the adapters; 0: no LoRA.
        head: Whether a DDT head replaces the last layer: add `ddt_head`.

    Returns:
        The network.
    """
    width, mlp = _width(config), _mlp(config, _width(config))
    tokens = patch_dim or config["in_channels"]
    trained = patch_dim is not None

    def layers() -> Iterator[Linear]:
        yield Linear("x_embedder", tokens, width, "image", first=True, trained=trained)
        yield Linear("context_embedder", config["joint_attention_dim"], width, "text", first=True)
        time = "time_guidance_embed.timestep_embedder"
        yield Linear(f"{time}.linear_1", config["timestep_guidance_channels"], width, "one", first=True)
        yield Linear(f"{time}.linear_2", width, width, "one")
        yield Linear("double_stream_modulation_img.linear", width, 6 * width, "one")
        yield Linear("double_stream_modulation_txt.linear", width, 6 * width, "one")
        yield Linear("single_stream_modulation.linear", width, 3 * width, "one")
        for i in range(config["num_layers"]):
            yield from _double_block(f"transformer_blocks.{i}", width, mlp)
        for i in range(config["num_single_layers"]):
            yield from _single_block(f"single_transformer_blocks.{i}", width, mlp, "both")
        yield Linear("norm_out.linear", width, 2 * width, "one", trained=trained)
        if not head:
            yield Linear("proj_out", width, tokens, "image", trained=trained)
        if not head and tokens != config["in_channels"]:  # PixelFlux2's recovery of u: down to the subspace and up
            yield Linear("A^T", tokens, config["in_channels"], "image")
            yield Linear("A", config["in_channels"], tokens, "image")

    blocks = config["num_layers"] + config["num_single_layers"]
    base = Network(tuple(layers()), (Attention(width, "both"),) * blocks)
    return base + Network(tuple(_adapters(base.linears, lora_rank)), ())


def ddt_head(config: Mapping[str, Any], patch_dim: int, blocks: int, heads: int, head_width: int) -> Network:
    """Return the matrices of DdtFlux2's decoder head, all of them trained.

    Args:
        config: Settings of the backbone's Flux2Transformer2DModel.
        patch_dim: Width of a pixel token, D.
        blocks: Number of blocks.
        heads: Number of attention heads.
        head_width: Width of a head.

    Returns:
        The network.
    """
    width = heads * head_width
    mlp = DDT_MLP_RATIO * width

    def layers() -> Iterator[Linear]:
        yield Linear("head.embed", patch_dim, width, "image", first=True)
        yield Linear("head.condition", _width(config), width, "image")
        for i in range(blocks):
            yield Linear(f"head.blocks.{i}.modulation", width, 3 * width, "image")
            yield from _single_block(f"head.blocks.{i}.block", width, mlp, "image")
        yield Linear("head.modulation_out", width, 2 * width, "image")
        yield Linear("head.proj_out", width, patch_dim, "image")

    return Network(tuple(layer._replace(trained=True) for layer in layers()), (Attention(width, "image"),) * blocks)


def count_flops(network: Network, image_tokens: int, text_tokens: int) -> Flops:
    """Count the operations for one image.

    The modulations are assumed to pass a gradient, which needs LoRA on the time embedding or a trained `norm_out`. What
    attention kernels recompute inside their backward pass is not counted.

    Args:
        network: The network. For a network that is not trained, ignore `backward` and `recomputed`.
        image_tokens: Number of image tokens.
        text_tokens: Number of text tokens.

    Returns:
        The operations.
    """
    tokens = {"image": image_tokens, "text": text_tokens, "both": image_tokens + text_tokens, "one": 1}
    products = [(layer, 2.0 * layer.inputs * layer.outputs * tokens[layer.stream]) for layer in network.linears]
    attention = sum(4.0 * width * tokens[stream] ** 2 for width, stream in network.attentions)
    return Flops(
        forward=sum(n for _, n in products) + attention,
        backward=sum(n * ((not layer.first) + layer.trained) for layer, n in products) + 2 * attention,
        recomputed=sum(n for layer, n in products if "blocks." in layer.name) + attention,
    )


class BlockValues(NamedTuple):
    """Values per token that a block stores for its backward pass."""

    double: float
    """Double-stream block"""
    single: float
    """Single-stream block"""
    head: float
    """Block of the DDT head"""


def values_kept(config: Mapping[str, Any], lora: bool, dropout: bool, head_width: int = 0) -> BlockValues:
    """Return the values that blocks store for the backward pass: those of diffusers 0.42 on a GPU, not compiled.

    Stored are the inputs of norms, SwiGLU and trained matrices, the factors of trained conditions, and the arguments
    and result of attention. Each entry of a dropout mask counts as half a value (one of bfloat16's two bytes).

    Args:
        config: Settings of Flux2Transformer2DModel.
        lora: Whether there is LoRA.
        dropout: Whether LoRA has dropout.
        head_width: Width of the whole DDT head; 0: no head.

    Returns:
        The values per token.
    """
    width, mlp = _width(config), _mlp(config, _width(config))
    adapted = (width + mlp) * (1.5 if dropout else 1)  # what enters the adapters of a block
    return BlockValues(
        double=8 * width + 3 * mlp + lora * (4 * width + adapted),
        single=7 * width + 3 * mlp + lora * (2 * width + adapted),
        head=15 * head_width + 4 * DDT_MLP_RATIO * head_width,
    )


def _double_block(name: str, width: int, mlp: int) -> Iterator[Linear]:
    streams: dict[Stream, tuple[str, tuple[str, ...]]] = {
        "image": ("ff", ("to_q", "to_k", "to_v", "to_out.0")),
        "text": ("ff_context", ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")),
    }
    for stream, (ff, projections) in streams.items():
        for projection in projections:
            yield Linear(f"{name}.attn.{projection}", width, width, stream)
        yield Linear(f"{name}.{ff}.linear_in", width, 2 * mlp, stream)
        yield Linear(f"{name}.{ff}.linear_out", mlp, width, stream)


def _single_block(name: str, width: int, mlp: int, stream: Stream) -> Iterator[Linear]:
    yield Linear(f"{name}.attn.to_qkv_mlp_proj", width, 3 * width + 2 * mlp, stream)
    yield Linear(f"{name}.attn.to_out", width + mlp, width, stream)


def _adapters(linears: Iterable[Linear], rank: int) -> Iterator[Linear]:
    for layer in linears:
        if rank and re.fullmatch(LORA_TARGETS, layer.name):
            yield Linear(f"{layer.name}.lora_A", layer.inputs, rank, layer.stream, layer.first, trained=True)
            yield Linear(f"{layer.name}.lora_B", rank, layer.outputs, layer.stream, trained=True)


def _width(config: Mapping[str, Any]) -> int:
    return config["num_attention_heads"] * config["attention_head_dim"]


def _mlp(config: Mapping[str, Any], width: int) -> int:
    return int(width * config["mlp_ratio"])
