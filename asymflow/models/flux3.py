"""FLUX.3 Image klein Base as a latent family: a transformer of its own, FLUX.2's autoencoder, and a Qwen3-VL.

Image and text pass through blocks of their own before the joint ones. Modulations are computed per token. The blocks of
reference images, which a text-to-image model does not evaluate, are removed. Importable without torch.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from asymflow.models.backbone import Backbone, PublishedModel, TokenGeometry, check_grid, run_each
from asymflow.models.klein_geometry import read_token_geometry
from asymflow.models.latent import LatentFamily
from asymflow.models.network import Attention, BlockMemory, Linear, Network, Stream, Vectors, lora_layers

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from asymflow.models.latent import ImageEncoder, TextEncoder

PADDINGS = ("none",)
"""A caption has the window that the model was trained with, whatever the other captions"""
HIDDEN_STATES = (4, 8, 12, 16, 20, 24, 28, 32)
"""Hidden states of Qwen3-VL that are the embedding, side by side"""
WINDOW = 80
"""Captions are padded to multiples of so many tokens, and the transformer attends to the padding"""
IMAGE_SPACING = 0.5
"""Distance of the positions of neighboring image tokens"""
LORA_TARGETS = (
    r"(mode_blocks\.image|txt_mode_blocks)\.\d+\.ff\.linear_(in|out)"
    r"|timestep_embedder\.linear_[12]"
    r"|single_transformer_blocks\.\d+\.(attn\.to_out\.0|ff\.linear_out)"
)
"""Names of the layers that LoRA adapts"""
BASE: dict[str, Any] = {
    "in_channels": 128,
    "cond_in_channels": 128,
    "num_layers": 5,
    "num_single_layers": 28,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 20480,
    "timestep_channels": 256,
    "mlp_ratio": 3.0,
    "axes_dims_rope": (32, 32, 32, 32),
    "rope_theta": 10000,
    "eps": 1e-6,
    "flow_map": False,
}
"""Settings of Flux3Transformer2DModel for FLUX.3 Image klein Base, the defaults of the class"""
_REFERENCES = "image_cond"


def prepare(transformer: Any) -> Any:
    """Remove the modules of reference images; see `Backbone.prepare`.

    Args:
        transformer: A Flux3Transformer2DModel.

    Returns:
        The same transformer, whose output without reference images is unchanged.

    Raises:
        ValueError: If the transformer is step-distilled.
    """
    if transformer.config.flow_map:
        raise ValueError("the transformer is step-distilled (flow_map); give the base model, which predicts velocities")
    for name in ("x_embedders", "mode_blocks", "early_stream_modulations", "single_stream_modulations"):
        modules = transformer.get_submodule(name)
        if _REFERENCES in modules:
            del modules[_REFERENCES]
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

    The transformer has no mask of text tokens, so captions of different lengths are evaluated one by one.

    Args:
        transformer: A Flux3Transformer2DModel.
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
    if mask is not None and not mask.all():
        return run_each(run, transformer, tokens, sigma, text, grid, mask)
    from asymflow.models.flux2 import image_positions, text_positions  # torch: plans do without it

    return transformer(
        hidden_states=tokens,
        encoder_hidden_states=text,
        timestep=sigma,
        img_ids=IMAGE_SPACING * image_positions(grid, tokens.device),
        txt_ids=text_positions(text.shape[1], tokens.device),
        return_dict=False,
    )[0]


def _pack(latents: "Tensor", side: int) -> "Tensor":
    from asymflow.models.cells import pack_latents

    return pack_latents(latents, side)


def network(config: Mapping[str, Any], patch_dim: int | None = None, lora_rank: int = 0, head: bool = False) -> Network:
    """Return the matrices of the transformer, without those of reference images.

    Args:
        config: Settings of Flux3Transformer2DModel.
        patch_dim: Width of a token; the three modules are trained. None: the frozen latent model.
        lora_rank: Rank of the adapters; 0: no LoRA.
        head: Whether a DDT head replaces the last layer; there is none for this transformer.

    Returns:
        The network.
    """
    width, own = _width(config), config["in_channels"]
    tokens, trained = patch_dim or own, patch_dim is not None
    kinds: dict[str, tuple[int, Stream]] = {
        "mode_blocks.image": (config["num_layers"], "image"),
        "txt_mode_blocks": (config["num_layers"], "text"),
        "single_transformer_blocks": (config["num_single_layers"], "both"),
    }

    def layers() -> Iterator[Linear]:
        yield Linear("x_embedders.image", tokens, width, "image", first=True, trained=trained)
        yield Linear("context_embedder", config["joint_attention_dim"], width, "text", first=True)
        yield Linear("timestep_embedder.linear_1", config["timestep_channels"], width, "one", first=True)
        yield Linear("timestep_embedder.linear_2", width, width, "one")
        for kind in ("early_stream_modulations", "single_stream_modulations"):
            yield Linear(f"{kind}.image.linear", width, 3 * width, "image")
            yield Linear(f"{kind}.txt.linear", width, 3 * width, "text")
        for kind, (count, stream) in kinds.items():
            for i in range(count):
                yield from _block(f"{kind}.{i}", width, _mlp(config), stream)
        yield Linear("norm_out.linear", width, 2 * width, "image", trained=trained)
        yield Linear("proj_out", width, tokens, "image", trained=trained)
        if tokens != own:  # the recovery of u: down to the subspace and up
            yield Linear("A^T", tokens, own, "image")
            yield Linear("A", own, tokens, "image")

    counts = {kind: range(count) for kind, (count, _) in kinds.items()}
    norms = (Vectors(f"{kind}.{i}.norms", 2 * config["attention_head_dim"]) for kind in counts for i in counts[kind])
    attentions = (Attention(width, stream) for count, stream in kinds.values() for _ in range(count))
    base = Network(tuple(layers()), tuple(attentions), tuple(norms))
    return base + Network(tuple(lora_layers(base.linears, LORA_TARGETS, lora_rank)), ())


def _block(name: str, width: int, mlp: int, stream: Stream) -> Iterator[Linear]:
    for projection in ("to_q", "to_k", "to_v", "to_out.0"):
        yield Linear(f"{name}.attn.{projection}", width, width, stream)
    yield Linear(f"{name}.ff.linear_in", width, 2 * mlp, stream)
    yield Linear(f"{name}.ff.linear_out", mlp, width, stream)


def block_memory(config: Mapping[str, Any], lora: bool, dropout: bool) -> tuple[BlockMemory, ...]:
    """Return the memory of the blocks by kind, not compiled, as `asymflow.models.geometry.values_kept`.

    Stored are the inputs of norms, of SwiGLU and of trained matrices, the factors of trained conditions, and the
    arguments and result of attention.

    Args:
        config: Settings of Flux3Transformer2DModel.
        lora: Whether there is LoRA.
        dropout: Whether LoRA has dropout.

    Returns:
        Blocks of the image, of the text, of both.
    """
    width, mlp = _width(config), _mlp(config)
    frozen = 8 * width + 3 * mlp  # one more than FLUX.2's, as the scales differ between tokens
    # what enters the adapters; with dropout, each has an input and a mask of its own
    scale = 1.5 if dropout else 1
    own = frozen + lora * (2 * width + scale * (width + mlp))
    joint = frozen + lora * (2 * width + scale * mlp + dropout * 1.5 * width)
    return (
        BlockMemory(config["num_layers"], "image", width, own),
        BlockMemory(config["num_layers"], "text", width, lora * own),  # nothing is trained there without LoRA
        BlockMemory(config["num_single_layers"], "both", width, joint),
    )


def _lora_targets(config: Mapping[str, Any]) -> str:
    return LORA_TARGETS


def _token_width(config: Mapping[str, Any]) -> int:
    return config["in_channels"]


def _width(config: Mapping[str, Any]) -> int:
    return config["num_attention_heads"] * config["attention_head_dim"]


def _mlp(config: Mapping[str, Any]) -> int:
    return int(_width(config) * config["mlp_ratio"])


def _load_image_encoder(*arguments: Any) -> "ImageEncoder":
    from asymflow.models.klein_encoders import KleinImages  # diffusers: a geometry is read without it

    return KleinImages.load(*arguments)


def _load_text_encoder(
    folder: str, device: str, dtype: "torch.dtype", max_tokens: int, padding: str = "none"
) -> "TextEncoder":
    from transformers import AutoTokenizer

    from asymflow.models.hidden_states import WindowedStates, load_language_model

    tokenizer: Any = AutoTokenizer.from_pretrained(folder, subfolder="tokenizer")

    def tokenize(captions: Sequence[str], length: int, padding: bool | str) -> "Mapping[str, Tensor]":
        texts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": caption}], tokenize=False, add_generation_prompt=True
            )
            for caption in captions
        ]
        inputs = tokenizer(texts, max_length=length, truncation=True)
        longest = min(-(-max(map(len, inputs["input_ids"])) // WINDOW) * WINDOW, length)
        options = {"padding": "max_length", "padding_side": "right", "return_tensors": "pt"}
        return tokenizer.pad(inputs, max_length=longest, **options)

    model = load_language_model(folder, device, dtype)
    return WindowedStates(model, tokenize, HIDDEN_STATES, max_tokens, padding, paddings=PADDINGS, window=WINDOW)


FAMILY = LatentFamily(
    pipelines=("Flux3ModularPipeline",),
    read_geometry=read_token_geometry,
    image_parts=("vae",),
    text_parts=("text_encoder", "tokenizer"),
    load_image_encoder=_load_image_encoder,
    load_text_encoder=_load_text_encoder,
    paddings=PADDINGS,
    backbone=Backbone(
        transformer="Flux3Transformer2DModel",
        first="x_embedders.image",
        last_norm="norm_out",
        last="proj_out",
        text_input="context_embedder",
        lora_targets=_lora_targets,
        run=run,
        pack=_pack,
        token_width=_token_width,
        network=network,
        block_memory=block_memory,
        block_names={
            "mode_blocks": "image blocks",
            "txt_mode_blocks": "text blocks",
            "single_transformer_blocks": "joint blocks",
        },
        prepare=prepare,
        image_blocks=("mode_blocks.image", "single_transformer_blocks"),
        image_free=r"context_embedder|timestep_embedder\..+|.+_modulations\..+|norm_out\.linear|txt_mode_blocks\..+",
        adapter_classes={
            "asymflow": "AsymFlux3Transformer2DModel",
            "latent": "Flux3Transformer2DModelAdapter",
            "l2p": "L2pFlux3Transformer2DModelAdapter",
        },
        adapter_keys=tuple(name for name in BASE if name not in ("in_channels", "cond_in_channels", "flow_map")),
    ),
    published={"flux-3-image-klein-base": PublishedModel("FLUX.3 Image klein Base", BASE, TokenGeometry(16, 128))},
)
