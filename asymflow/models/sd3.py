"""Stable Diffusion 3.5 as a latent family: MMDiT, a shifted and scaled autoencoder, and three text encoders.

Its transformer takes images, whose cells of 2 x 2 latents it packs and unpacks itself, and a pooled embedding of the
caption besides that of its tokens: here the first token of an embedding. Importable without torch.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from asymflow.models.backbone import Backbone, PublishedModel, TokenGeometry, check_grid, run_each
from asymflow.models.latent import LatentFamily
from asymflow.models.network import Attention, BlockMemory, Linear, Network, Stream, Vectors, lora_layers
from asymflow.models.shifted_latents import CELL, load_image_encoder, pack, read_token_geometry, unpack

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from asymflow.models.latent import TextEncoder

LORA_TARGETS = (
    r"transformer_blocks\.\d+\.ff(_context)?\.net\.(0\.proj|2)"
    r"|time_text_embed\.timestep_embedder\.linear_[12]"
    r"|transformer_blocks\.\d+\.attn\.(to_out\.0|to_add_out)"
    r"|transformer_blocks\.\d+\.attn2\.to_out\.0"
)
"""Names of the layers that LoRA adapts"""
MEDIUM: dict[str, Any] = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "out_channels": 16,
    "pos_embed_max_size": 384,
    "dual_attention_layers": tuple(range(13)),
    "qk_norm": "rms_norm",
}
"""Settings of SD3Transformer2DModel for Stable Diffusion 3.5 Medium, as published"""
LARGE: dict[str, Any] = {
    **MEDIUM,
    "num_layers": 38,
    "num_attention_heads": 38,
    "caption_projection_dim": 2432,
    "pos_embed_max_size": 192,
    "dual_attention_layers": (),
}
"""Settings of SD3Transformer2DModel for Stable Diffusion 3.5 Large, as published"""
_SINUSOIDS, _MLP_RATIO, _TIMESTEPS = 256, 4, 1000  # fixed in the class and its pipeline


def prepare(transformer: Any) -> Any:
    """Make the first layer an nn.Linear over tokens instead of a convolution over cells; see `Backbone.prepare`.

    Args:
        transformer: An SD3Transformer2DModel.

    Returns:
        The same transformer, whose output is unchanged.
    """
    from asymflow.models.sd3_modules import CellEmbedding  # torch: plans do without it

    if not isinstance(transformer.pos_embed, CellEmbedding):
        transformer.pos_embed = CellEmbedding(transformer.pos_embed)
        transformer._repeated_blocks = ["JointTransformerBlock"]  # which the class does not name for compilation
    return transformer


def run(
    transformer: Any,
    tokens: "Tensor",
    sigma: "Tensor",
    text: "Tensor",
    grid: tuple[int, int],
    mask: "Tensor | None" = None,
) -> "Tensor":
    """Evaluate the transformer once; see `Backbone.run`.

    The transformer has no mask of text tokens, so captions of different lengths are evaluated one by one. It unpacks
    cells of `out_channels` channels, 16 of latents and D / 4 of pixels, so it is set from the last layer.

    Args:
        transformer: An SD3Transformer2DModel that `prepare` returned.
        tokens: Image tokens (B, N, C).
        sigma: Noise levels (B,) in [0, 1].
        text: Text embeddings (B, T, E), as `asymflow.models.sd3_modules.PooledCaptions` returns.
        grid: Rows and columns of image tokens, (h, w) with h w = N.
        mask: True for valid text tokens (B, T); None: all are valid.

    Returns:
        Velocity tokens (B, N, C').

    Raises:
        ValueError: If the tokens do not fill the grid.
    """
    check_grid(tokens, grid)
    if mask is not None and not mask.all():
        return run_each(run, transformer, tokens, sigma, text, grid, mask)
    transformer.out_channels = transformer.proj_out.out_features // CELL**2
    velocity = transformer(
        hidden_states=unpack(tokens, grid, CELL),
        encoder_hidden_states=text[:, 1:],
        pooled_projections=text[:, 0, : transformer.config.pooled_projection_dim],
        timestep=_TIMESTEPS * sigma,
        return_dict=False,
    )[0]
    return pack(velocity, CELL)


def network(config: Mapping[str, Any], patch_dim: int | None = None, lora_rank: int = 0, head: bool = False) -> Network:
    """Return the matrices of the transformer.

    Args:
        config: Settings of SD3Transformer2DModel.
        patch_dim: Width of a token; the three modules are trained. None: the frozen latent model.
        lora_rank: Rank of the adapters; 0: no LoRA.
        head: Whether a DDT head replaces the last layer; there is none for this transformer.

    Returns:
        The network.
    """
    width, own, blocks = _width(config), _token_width(config), config["num_layers"]
    tokens, trained, dual = patch_dim or own, patch_dim is not None, set(config["dual_attention_layers"])

    def layers() -> Iterator[Linear]:
        yield Linear("pos_embed.proj", tokens, width, "image", first=True, trained=trained, bias=True)
        yield Linear("context_embedder", config["joint_attention_dim"], width, "text", first=True, bias=True)
        widths = {"timestep_embedder": _SINUSOIDS, "text_embedder": config["pooled_projection_dim"]}
        for name, inputs in widths.items():
            frozen = name == "text_embedder"  # nothing before its second layer is trained either
            yield Linear(f"time_text_embed.{name}.linear_1", inputs, width, "one", first=True, bias=True)
            yield Linear(f"time_text_embed.{name}.linear_2", width, width, "one", first=frozen, bias=True)
        for i in range(blocks):
            yield from _block(f"transformer_blocks.{i}", width, i in dual, i == blocks - 1)
        yield Linear("norm_out.linear", width, 2 * width, "one", trained=trained, bias=True)
        yield Linear("proj_out", width, tokens, "image", trained=trained, bias=True)
        if tokens != own:  # the recovery of u: down to the subspace and up
            yield Linear("A^T", tokens, own, "image")
            yield Linear("A", own, tokens, "image")

    heads = config["attention_head_dim"] * (config["qk_norm"] is not None)
    counts = [(6 if i in dual else 4) - (i == blocks - 1) for i in range(blocks)]
    norms = [Vectors(f"transformer_blocks.{i}.norms", count * heads) for i, count in enumerate(counts)]
    norms.append(Vectors(f"transformer_blocks.{blocks - 1}.attn.norm_added_q", heads))
    attentions = (Attention(width, "both"),) * blocks + (Attention(width, "image"),) * len(dual)
    base = Network(tuple(layers()), attentions, tuple(norms))
    return base + Network(tuple(lora_layers(base.linears, LORA_TARGETS, lora_rank)), ())


def _block(name: str, width: int, dual: bool, last: bool) -> Iterator[Linear]:
    streams: dict[Stream, tuple[str, str, tuple[str, ...], str]] = {
        "image": ("norm1", "ff", ("to_q", "to_k", "to_v"), "to_out.0"),
        "text": ("norm1_context", "ff_context", ("add_q_proj", "add_k_proj", "add_v_proj"), "to_add_out"),
    }
    for stream, (norm, ff, projections, output) in streams.items():
        ends = last and stream == "text"  # the last block returns no text
        conditions = 2 if ends else 9 if dual and stream == "image" else 6
        yield Linear(f"{name}.{norm}.linear", width, conditions * width, "one", bias=True)
        for projection in projections if ends else (*projections, output):
            yield Linear(f"{name}.attn.{projection}", width, width, stream, bias=True)
        if not ends:
            yield Linear(f"{name}.{ff}.net.0.proj", width, _MLP_RATIO * width, stream, bias=True)
            yield Linear(f"{name}.{ff}.net.2", _MLP_RATIO * width, width, stream, bias=True)
    for projection in ("to_q", "to_k", "to_v", "to_out.0") if dual else ():
        yield Linear(f"{name}.attn2.{projection}", width, width, "image", bias=True)


def block_memory(config: Mapping[str, Any], lora: bool, dropout: bool) -> tuple[BlockMemory, ...]:
    """Return the memory of the blocks, not compiled, as `asymflow.models.geometry.values_kept`.

    Stored are the inputs of norms, of GELU and of trained matrices, the factors of trained conditions, and the
    arguments and result of attention. The second attention of some blocks, over the image alone, is counted for all
    tokens.

    Args:
        config: Settings of SD3Transformer2DModel.
        lora: Whether there is LoRA.
        dropout: Whether LoRA has dropout.

    Returns:
        Blocks with one attention, then blocks with two.
    """
    width, dual = _width(config), len(config["dual_attention_layers"])
    mlp = _MLP_RATIO * width
    # what enters the adapters; with dropout, each has an input and a mask of its own
    adapted = 1.5 * (2 * width + mlp) if dropout else width + mlp
    kept = 8 * width + mlp + lora * (4 * width + adapted)
    second = 6 * width + lora * (2 * width + dropout * 1.5 * width)
    return (
        BlockMemory(config["num_layers"] - dual, "both", width, kept),
        BlockMemory(dual, "both", width, kept + second if dual else 0),
    )


def _lora_targets(config: Mapping[str, Any]) -> str:
    return LORA_TARGETS


def _unused(config: Mapping[str, Any]) -> str:
    return rf"transformer_blocks\.{config['num_layers'] - 1}\.attn\.(add_q_proj|norm_added_q)"


def _width(config: Mapping[str, Any]) -> int:
    return config["num_attention_heads"] * config["attention_head_dim"]


def _token_width(config: Mapping[str, Any]) -> int:
    return CELL**2 * config["in_channels"]


def _load_text_encoder(
    folder: str, device: str, dtype: "torch.dtype", max_tokens: int, padding: str = "none"
) -> "TextEncoder":
    from asymflow.models.sd3_modules import PooledCaptions  # torch: a geometry is read without it

    return PooledCaptions.load(folder, device, dtype, max_tokens, padding)


FAMILY = LatentFamily(
    pipelines=("StableDiffusion3Pipeline",),
    read_geometry=read_token_geometry,
    image_parts=("vae",),
    text_parts=("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3"),
    load_image_encoder=load_image_encoder,
    load_text_encoder=_load_text_encoder,
    least_text_tokens=79,  # one pooled, 77 of CLIP, one of T5
    backbone=Backbone(
        transformer="SD3Transformer2DModel",
        first="pos_embed.proj",
        last_norm="norm_out",
        last="proj_out",
        text_input="context_embedder",
        lora_targets=_lora_targets,
        run=run,
        pack=pack,
        token_width=_token_width,
        network=network,
        block_memory=block_memory,
        block_names={"transformer_blocks": "blocks"},
        prepare=prepare,
        image_blocks=("transformer_blocks",),
        image_free=(
            r"context_embedder|time_text_embed\..+|.+\.norm1(_context)?\.linear|norm_out\.linear"
            r"|transformer_blocks\.0\.attn\.add_[qkv]_proj"
        ),
        unused=_unused,
        adapter_classes={
            "asymflow": "AsymSD3Transformer2DModel",
            "latent": "SD3Transformer2DModelAdapter",
            "l2p": "L2pSD3Transformer2DModelAdapter",
        },
        adapter_keys=tuple(name for name in MEDIUM if name not in ("sample_size", "in_channels", "out_channels")),
    ),
    published={
        "stable-diffusion-3.5-medium": PublishedModel("Stable Diffusion 3.5 Medium", MEDIUM, TokenGeometry(16, 64)),
        "stable-diffusion-3.5-large": PublishedModel("Stable Diffusion 3.5 Large", LARGE, TokenGeometry(16, 64)),
    },
)
