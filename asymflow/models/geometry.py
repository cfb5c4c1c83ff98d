"""Matrices of a FLUX.2 transformer and of the DDT head, from its settings; importable without torch."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from asymflow.models.network import Attention as Attention
from asymflow.models.network import BlockMemory, Linear, Network, Stream, Vectors, lora_layers
from asymflow.models.network import Flops as Flops
from asymflow.models.network import count_flops as count_flops

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

KLEIN_4B: dict[str, Any] = {
    **KLEIN_9B,
    "num_layers": 5,
    "num_single_layers": 20,
    "num_attention_heads": 24,
    "joint_attention_dim": 7680,
}
"""Settings of Flux2Transformer2DModel for FLUX.2 klein Base 4B, as published"""

DEV: dict[str, Any] = {
    **KLEIN_9B,
    "num_single_layers": 48,
    "num_attention_heads": 48,
    "joint_attention_dim": 15360,
    "guidance_embeds": True,
}
"""Settings of Flux2Transformer2DModel for FLUX.2 dev, as published"""


def network(config: Mapping[str, Any], patch_dim: int | None = None, lora_rank: int = 0, head: bool = False) -> Network:
    """Return the matrices of a transformer.

    Args:
        config: Settings of Flux2Transformer2DModel.
        patch_dim: Width of a token; the three modules are trained, as in PixelModel (in LatentModel, for the
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
        if config["guidance_embeds"]:
            guidance = "time_guidance_embed.guidance_embedder"
            yield Linear(f"{guidance}.linear_1", config["timestep_guidance_channels"], width, "one", first=True)
            yield Linear(f"{guidance}.linear_2", width, width, "one", first=True)
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
        if not head and tokens != config["in_channels"]:  # PixelModel's recovery of u: down to the subspace and up
            yield Linear("A^T", tokens, config["in_channels"], "image")
            yield Linear("A", config["in_channels"], tokens, "image")

    blocks = config["num_layers"] + config["num_single_layers"]
    # norms of queries and keys: a double block has them for each of its streams
    norms = {"transformer_blocks": 4, "single_transformer_blocks": 2}
    counts = {"transformer_blocks": config["num_layers"], "single_transformer_blocks": config["num_single_layers"]}
    vectors = tuple(
        Vectors(f"{kind}.{i}.attn.norms", norms[kind] * config["attention_head_dim"])
        for kind, count in counts.items()
        for i in range(count)
    )
    base = Network(tuple(layers()), (Attention(width, "both"),) * blocks, vectors)
    return base + Network(tuple(lora_layers(base.linears, LORA_TARGETS, lora_rank)), ())


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

    return Network(
        tuple(layer._replace(trained=True, bias=".block." not in layer.name) for layer in layers()),
        (Attention(width, "image"),) * blocks,
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


def block_memory(config: Mapping[str, Any], lora: bool, dropout: bool) -> tuple[BlockMemory, ...]:
    """Return the memory of the blocks by kind.

    Args:
        config: Settings of Flux2Transformer2DModel.
        lora: Whether there is LoRA.
        dropout: Whether LoRA has dropout.

    Returns:
        Double-stream blocks, then single-stream blocks.
    """
    kept, width = values_kept(config, lora, dropout), _width(config)
    return (
        BlockMemory(config["num_layers"], "both", width, kept.double),
        BlockMemory(config["num_single_layers"], "both", width, kept.single),
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


def _width(config: Mapping[str, Any]) -> int:
    return config["num_attention_heads"] * config["attention_head_dim"]


def _mlp(config: Mapping[str, Any], width: int) -> int:
    return int(width * config["mlp_ratio"])
