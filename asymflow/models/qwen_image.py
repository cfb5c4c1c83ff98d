"""Qwen-Image as a latent family: a double-stream transformer, the image part of a video autoencoder, a Qwen2.5-VL.

Latents are normalized per channel and packed channel first, as FLUX.2's; the autoencoder has an axis of frames.
Importable without torch.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asymflow.models.backbone import Backbone, PublishedModel, TokenGeometry, check_grid
from asymflow.models.latent import LatentFamily, read_autoencoder_config
from asymflow.models.network import Attention, BlockMemory, Linear, Network, Stream, Vectors, lora_layers

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from asymflow.models.latent import ImageEncoder, TextEncoder

PADDINGS = ("none",)
"""Padding is masked, so captions are not padded"""
CELL = 2
"""Side of the cell of latents that is a token"""
LAST_HIDDEN_STATE, SKIPPED = -1, 34
"""Hidden state of Qwen2.5-VL that is the embedding; tokens of the template before the caption, which are left out"""
BASE: dict[str, Any] = {
    "patch_size": 2,
    "in_channels": 64,
    "out_channels": 16,
    "num_layers": 60,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 3584,
    "guidance_embeds": False,
    "axes_dims_rope": (16, 56, 56),
}
"""Settings of QwenImageTransformer2DModel for Qwen-Image, as published"""
_SINUSOIDS, _MLP_RATIO = 256, 4  # fixed in the class


def run(
    transformer: Any,
    tokens: "Tensor",
    sigma: "Tensor",
    text: "Tensor",
    grid: tuple[int, int],
    mask: "Tensor | None" = None,
) -> "Tensor":
    """Evaluate the transformer once; see `Backbone.run`.

    Args:
        transformer: A QwenImageTransformer2DModel.
        tokens: Image tokens (B, N, C).
        sigma: Noise levels (B,) in [0, 1].
        text: Text embeddings (B, T, E).
        grid: Rows and columns of image tokens, (h, w) with h w = N.
        mask: True for valid text tokens (B, T); None: all are valid.

    Returns:
        Velocity tokens (B, N, C').

    Raises:
        ValueError: If the tokens do not fill the grid.
    """
    check_grid(tokens, grid)
    return transformer(
        hidden_states=tokens,
        encoder_hidden_states=text,
        encoder_hidden_states_mask=mask,
        timestep=sigma,
        img_shapes=[[(1, *grid)]] * len(tokens),
        return_dict=False,
    )[0]


def _pack(latents: "Tensor", side: int) -> "Tensor":
    from asymflow.models.cells import pack_latents  # torch: plans do without it

    return pack_latents(latents, side)


def read_token_geometry(folder: str | Path) -> TokenGeometry:
    """Read the geometry of a pipeline folder.

    Args:
        folder: The folder.

    Returns:
        The geometry.

    Raises:
        ValueError: If the folder has no autoencoder, or its settings are incomplete.
    """
    config = read_autoencoder_config(folder, ("temperal_downsample", "z_dim"))
    return _token_geometry(config)


def _token_geometry(config: Mapping[str, Any]) -> TokenGeometry:
    return TokenGeometry(CELL * 2 ** len(config["temperal_downsample"]), CELL**2 * config["z_dim"])


def lora_targets(config: Mapping[str, Any]) -> str:
    """Return the pattern of the layers that LoRA adapts.

    The text of the last block is not used any more, so its layers get no gradient and are left out.

    Args:
        config: Settings of QwenImageTransformer2DModel.

    Returns:
        Pattern of whole names.
    """
    blocks = "|".join(str(i) for i in range(config["num_layers"] - 1)) or "none"
    return (
        r"transformer_blocks\.\d+\.img_mlp\.net\.(0\.proj|2)"
        rf"|transformer_blocks\.({blocks})\.txt_mlp\.net\.(0\.proj|2)"
        r"|time_text_embed\.timestep_embedder\.linear_[12]"
        r"|transformer_blocks\.\d+\.attn\.to_out\.0"
        rf"|transformer_blocks\.({blocks})\.attn\.to_add_out"
    )


def network(config: Mapping[str, Any], patch_dim: int | None = None, lora_rank: int = 0, head: bool = False) -> Network:
    """Return the matrices of the transformer.

    Args:
        config: Settings of QwenImageTransformer2DModel.
        patch_dim: Width of a token; the three modules are trained. None: the frozen latent model.
        lora_rank: Rank of the adapters; 0: no LoRA.
        head: Whether a DDT head replaces the last layer; there is none for this transformer.

    Returns:
        The network.
    """
    width, own, blocks = _width(config), config["in_channels"], config["num_layers"]
    tokens, trained = patch_dim or own, patch_dim is not None

    def layers() -> Iterator[Linear]:
        yield Linear("img_in", tokens, width, "image", first=True, trained=trained, bias=True)
        yield Linear("txt_in", config["joint_attention_dim"], width, "text", first=True, bias=True)
        time = "time_text_embed.timestep_embedder"
        yield Linear(f"{time}.linear_1", _SINUSOIDS, width, "one", first=True, bias=True)
        yield Linear(f"{time}.linear_2", width, width, "one", bias=True)
        for i in range(blocks):
            yield from _block(f"transformer_blocks.{i}", width, i == blocks - 1)
        yield Linear("norm_out.linear", width, 2 * width, "one", trained=trained, bias=True)
        yield Linear("proj_out", width, tokens, "image", trained=trained, bias=True)
        if tokens != own:  # the recovery of u: down to the subspace and up
            yield Linear("A^T", tokens, own, "image")
            yield Linear("A", own, tokens, "image")

    head, last = config["attention_head_dim"], f"transformer_blocks.{blocks - 1}.attn"
    norms = [Vectors(f"transformer_blocks.{i}.attn.norms", (4 if i < blocks - 1 else 3) * head) for i in range(blocks)]
    vectors = (*norms, Vectors(f"{last}.norm_added_q", head), Vectors("txt_norm", config["joint_attention_dim"]))
    base = Network(tuple(layers()), (Attention(width, "both"),) * blocks, vectors)
    return base + Network(tuple(lora_layers(base.linears, lora_targets(config), lora_rank)), ())


def _block(name: str, width: int, last: bool) -> Iterator[Linear]:
    streams: dict[str, tuple[Stream, tuple[str, ...], str]] = {
        "img": ("image", ("to_q", "to_k", "to_v"), "to_out.0"),
        "txt": ("text", ("add_q_proj", "add_k_proj", "add_v_proj"), "to_add_out"),
    }
    for prefix, (stream, projections, output) in streams.items():
        unused = last and stream == "text"  # no gradient comes back to it
        yield Linear(f"{name}.{prefix}_mod.1", width, 6 * width, "one", bias=True)
        for projection in projections:
            yield Linear(f"{name}.attn.{projection}", width, width, stream, bias=True)
        yield Linear(f"{name}.attn.{output}", width, width, stream, first=unused, bias=True)
        yield Linear(f"{name}.{prefix}_mlp.net.0.proj", width, _MLP_RATIO * width, stream, first=unused, bias=True)
        yield Linear(f"{name}.{prefix}_mlp.net.2", _MLP_RATIO * width, width, stream, first=unused, bias=True)


def block_memory(config: Mapping[str, Any], lora: bool, dropout: bool) -> tuple[BlockMemory, ...]:
    """Return the memory of the blocks, not compiled, as `asymflow.models.geometry.values_kept`.

    Stored are the inputs of norms, of GELU and of trained matrices, the factors of trained conditions, and the
    arguments and result of attention.

    Args:
        config: Settings of QwenImageTransformer2DModel.
        lora: Whether there is LoRA.
        dropout: Whether LoRA has dropout.

    Returns:
        One kind of blocks.
    """
    width = _width(config)
    mlp = _MLP_RATIO * width
    # what enters the adapters; with dropout, each has an input and a mask of its own
    adapted = 1.5 * (2 * width + mlp) if dropout else width + mlp
    return (BlockMemory(config["num_layers"], "both", width, 8 * width + mlp + lora * (4 * width + adapted)),)


def _unused(config: Mapping[str, Any]) -> str:
    last = rf"transformer_blocks\.{config['num_layers'] - 1}"
    return rf"{last}\.(txt_mlp\..+|attn\.(to_add_out|add_q_proj|norm_added_q))"


def _width(config: Mapping[str, Any]) -> int:
    return config["num_attention_heads"] * config["attention_head_dim"]


def _token_width(config: Mapping[str, Any]) -> int:
    return config["in_channels"]


def _load_image_encoder(folder: str, device: str, dtype: "torch.dtype") -> "ImageEncoder":
    """Load the autoencoder: z = (latents - latents_mean) / latents_std, by channel."""
    from diffusers import AutoencoderKLQwenImage  # a geometry is read without it

    from asymflow.models.cells import pack_latents, unpack_latents
    from asymflow.models.channel_normalized import ChannelNormalizedImages

    autoencoder: Any = AutoencoderKLQwenImage.from_pretrained(folder, subfolder="vae", dtype=dtype)
    config = autoencoder.config
    mean, std, geometry = config.latents_mean, config.latents_std, _token_geometry(config)
    autoencoder = autoencoder.to(device).eval()
    return ChannelNormalizedImages(autoencoder, geometry, mean, std, pack_latents, unpack_latents, CELL, frames=True)


def _load_text_encoder(
    folder: str, device: str, dtype: "torch.dtype", max_tokens: int, padding: str = "none"
) -> "TextEncoder":
    """Load the text encoder. Qwen-Image masks padding, so captions are not padded."""
    from diffusers import QwenImagePipeline
    from transformers import AutoTokenizer

    from asymflow.models.hidden_states import HiddenStates, load_language_model

    tokenizer: Any = AutoTokenizer.from_pretrained(folder, subfolder="tokenizer")
    template = QwenImagePipeline(None, None, None, None, None).prompt_template_encode

    def tokenize(captions: Sequence[str], length: int, padding: bool | str) -> "Mapping[str, Tensor]":
        texts = [template.format(caption) for caption in captions]
        return tokenizer(texts, padding=padding, max_length=length, truncation=True, return_tensors="pt")

    model = load_language_model(folder, device, dtype)
    return HiddenStates(model, tokenize, (LAST_HIDDEN_STATE,), max_tokens, padding, SKIPPED, paddings=PADDINGS)


FAMILY = LatentFamily(
    pipelines=("QwenImagePipeline",),
    read_geometry=read_token_geometry,
    image_parts=("vae",),
    text_parts=("text_encoder", "tokenizer"),
    load_image_encoder=_load_image_encoder,
    load_text_encoder=_load_text_encoder,
    paddings=PADDINGS,
    backbone=Backbone(
        transformer="QwenImageTransformer2DModel",
        first="img_in",
        last_norm="norm_out",
        last="proj_out",
        text_input="txt_in",
        lora_targets=lora_targets,
        run=run,
        pack=_pack,
        token_width=_token_width,
        network=network,
        block_memory=block_memory,
        block_names={"transformer_blocks": "blocks"},
        image_blocks=("transformer_blocks",),
        image_free=(
            r"txt_in|time_text_embed\..+|.+\.(img|txt)_mod\.1|norm_out\.linear|transformer_blocks\.0\.attn\.add_[qkv]_proj"
        ),
        unused=_unused,
        adapter_classes={
            "asymflow": "AsymQwenImageTransformer2DModel",
            "latent": "QwenImageTransformer2DModelAdapter",
            "l2p": "L2pQwenImageTransformer2DModelAdapter",
        },
        adapter_keys=(
            "num_layers",
            "num_attention_heads",
            "attention_head_dim",
            "joint_attention_dim",
            "axes_dims_rope",
        ),
    ),
    published={"Qwen-Image": PublishedModel("Qwen-Image", BASE, TokenGeometry(16, 64))},
)
