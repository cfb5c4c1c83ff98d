"""Z-Image as a latent family: a single-stream transformer, FLUX.1's autoencoder, and a Qwen3 4B.

Its call differs from FLUX.2's: time runs from noise (0) to data (1), the output is the negative velocity, tokens are
packed channel last, and the transformer packs and unpacks images itself, which are given as lists. Importable without
torch.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from asymflow.models.backbone import Backbone, PublishedModel, TokenGeometry, check_grid
from asymflow.models.latent import LatentFamily
from asymflow.models.network import Attention, BlockMemory, Linear, Network, Stream, Vectors, lora_layers
from asymflow.models.shifted_latents import CELL, load_image_encoder, pack, read_token_geometry, unpack

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from asymflow.models.latent import TextEncoder

PADDINGS = ("none",)
"""Padding is masked, so captions are not padded"""
LORA_TARGETS = (
    r"(layers|noise_refiner|context_refiner)\.\d+\.feed_forward\.w[123]"
    r"|t_embedder\.mlp\.[02]"
    r"|layers\.\d+\.attention\.to_out\.0"
)
"""Names of the layers that LoRA adapts"""
HIDDEN_STATE = -2
"""Hidden state of Qwen3 that is the embedding"""
BASE: dict[str, Any] = {
    "all_patch_size": (2,),
    "all_f_patch_size": (1,),
    "in_channels": 16,
    "dim": 3840,
    "n_layers": 30,
    "n_refiner_layers": 2,
    "n_heads": 30,
    "n_kv_heads": 30,
    "norm_eps": 1e-5,
    "qk_norm": True,
    "cap_feat_dim": 2560,
    "rope_theta": 256.0,
    "t_scale": 1000.0,
    "axes_dims": [32, 48, 48],
    "axes_lens": [1536, 512, 512],
}
"""Settings of ZImageTransformer2DModel for Z-Image, as published"""
_FIRST, _FINAL = "all_x_embedder.2-1", "all_final_layer.2-1"
_CONDITIONS, _TIME_WIDTH, _SINUSOIDS = 256, 1024, 256  # fixed in the class


def run(
    transformer: Any,
    tokens: "Tensor",
    sigma: "Tensor",
    text: "Tensor",
    grid: tuple[int, int],
    mask: "Tensor | None" = None,
) -> "Tensor":
    """Evaluate the transformer once; see `Backbone.run`.

    The transformer packs cells of `out_channels` channels, 16 of latents and D / 4 of pixels, so it is set
    from the last layer.

    Args:
        transformer: A ZImageTransformer2DModel.
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
    transformer.out_channels = transformer.get_submodule(f"{_FINAL}.linear").out_features // CELL**2
    captions = list(text) if mask is None else [row[valid] for row, valid in zip(text, mask, strict=True)]
    images = list(unpack(tokens, grid, CELL)[:, :, None])  # with an axis of frames
    outputs = transformer(images, 1 - sigma, captions, return_dict=False, patch_size=CELL, f_patch_size=1)[0]
    return pack(-_stacked(outputs)[:, :, 0], CELL)


def _stacked(rows: "Sequence[Tensor]") -> "Tensor":
    import torch  # plans do without it

    return torch.stack(list(rows))


def network(config: Mapping[str, Any], patch_dim: int | None = None, lora_rank: int = 0, head: bool = False) -> Network:
    """Return the matrices of the transformer.

    Args:
        config: Settings of ZImageTransformer2DModel.
        patch_dim: Width of a token; the three modules are trained. None: the frozen latent model.
        lora_rank: Rank of the adapters; 0: no LoRA.
        head: Whether a DDT head replaces the last layer; there is none for this transformer.

    Returns:
        The network.
    """
    width, own = config["dim"], _token_width(config)
    tokens, trained, conditions = patch_dim or own, patch_dim is not None, min(config["dim"], _CONDITIONS)
    kinds: dict[str, tuple[int, Stream, bool]] = {
        "noise_refiner": (config["n_refiner_layers"], "image", True),
        "context_refiner": (config["n_refiner_layers"], "text", False),
        "layers": (config["n_layers"], "both", True),
    }

    def layers() -> Iterator[Linear]:
        yield Linear(_FIRST, tokens, width, "image", first=True, trained=trained, bias=True)
        yield Linear("t_embedder.mlp.0", _SINUSOIDS, _TIME_WIDTH, "one", first=True, bias=True)
        yield Linear("t_embedder.mlp.2", _TIME_WIDTH, conditions, "one", bias=True)
        yield Linear("cap_embedder.1", config["cap_feat_dim"], width, "text", first=True, bias=True)
        for kind, (count, stream, modulated) in kinds.items():
            for i in range(count):
                untrained = kind == "context_refiner" and i == 0  # nothing before its feed-forward is trained
                yield from _block(f"{kind}.{i}", width, stream, conditions if modulated else 0, untrained)
        yield Linear(f"{_FINAL}.adaLN_modulation.1", conditions, width, "one", trained=trained, bias=True)
        yield Linear(f"{_FINAL}.linear", width, tokens, "both", trained=trained, bias=True)  # then cut to the image
        if tokens != own:  # the recovery of u: down to the subspace and up
            yield Linear("A^T", tokens, own, "image")
            yield Linear("A", own, tokens, "image")

    norms = 4 * width + 2 * (width // config["n_heads"]) * config["qk_norm"]
    vectors = [Vectors(f"{kind}.{i}.norms", norms) for kind, (count, *_) in kinds.items() for i in range(count)]
    vectors += [Vectors("cap_embedder.0", config["cap_feat_dim"]), Vectors("pad_tokens", 2 * width)]
    attentions = [Attention(width, stream) for count, stream, _ in kinds.values() for _ in range(count)]
    base = Network(tuple(layers()), tuple(attentions), tuple(vectors))
    return base + Network(tuple(lora_layers(base.linears, LORA_TARGETS, lora_rank)), ())


def _block(name: str, width: int, stream: Stream, conditions: int, first: bool) -> Iterator[Linear]:
    for projection in ("to_q", "to_k", "to_v", "to_out.0"):
        yield Linear(f"{name}.attention.{projection}", width, width, stream, first)
    for layer, (inputs, outputs) in {"w1": (width, _mlp(width)), "w2": (_mlp(width), width)}.items():
        yield Linear(f"{name}.feed_forward.{layer}", inputs, outputs, stream)
    yield Linear(f"{name}.feed_forward.w3", width, _mlp(width), stream)
    if conditions:
        yield Linear(f"{name}.adaLN_modulation.0", conditions, 4 * width, "one", bias=True)


def _mlp(width: int) -> int:
    return int(width / 3 * 8)


def block_memory(config: Mapping[str, Any], lora: bool, dropout: bool) -> tuple[BlockMemory, ...]:
    """Return the memory of the blocks by kind, not compiled, as `asymflow.models.geometry.values_kept`.

    Stored are the inputs of norms, of SwiGLU and of trained matrices, the factors of trained conditions, and the
    arguments and result of attention.

    Args:
        config: Settings of ZImageTransformer2DModel.
        lora: Whether there is LoRA.
        dropout: Whether LoRA has dropout.

    Returns:
        Noise refiner, context refiner, layers.
    """
    width, mlp = config["dim"], _mlp(config["dim"])
    frozen = 10 * width + 3 * mlp
    # what enters the adapters of the feed-forward; with dropout, each has an input and a mask of its own
    adapted = 1.5 * (2 * width + mlp) if dropout else width + mlp
    modulated = frozen + lora * (4 * width + adapted)
    return (
        BlockMemory(config["n_refiner_layers"], "image", width, modulated),
        BlockMemory(config["n_refiner_layers"], "text", width, lora * (frozen + width + adapted)),
        BlockMemory(config["n_layers"], "both", width, modulated + lora * dropout * 1.5 * width),
    )


def _lora_targets(config: Mapping[str, Any]) -> str:
    return LORA_TARGETS


def _token_width(config: Mapping[str, Any]) -> int:
    return CELL**2 * config["in_channels"]


def _load_text_encoder(
    folder: str, device: str, dtype: "torch.dtype", max_tokens: int, padding: str = "none"
) -> "TextEncoder":
    """Load the text encoder. Z-Image masks padding, so captions are not padded."""
    from transformers import AutoTokenizer

    from asymflow.models.hidden_states import HiddenStates, load_language_model

    tokenizer: Any = AutoTokenizer.from_pretrained(folder, subfolder="tokenizer")

    def tokenize(captions: Sequence[str], length: int, padding: bool | str) -> "Mapping[str, Tensor]":
        texts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": caption}], tokenize=False, add_generation_prompt=True, enable_thinking=True
            )
            for caption in captions
        ]
        return tokenizer(texts, padding=padding, max_length=length, truncation=True, return_tensors="pt")

    model = load_language_model(folder, device, dtype)
    return HiddenStates(model, tokenize, (HIDDEN_STATE,), max_tokens, padding, paddings=PADDINGS)


FAMILY = LatentFamily(
    pipelines=("ZImagePipeline",),
    read_geometry=read_token_geometry,
    image_parts=("vae",),
    text_parts=("text_encoder", "tokenizer"),
    load_image_encoder=load_image_encoder,
    load_text_encoder=_load_text_encoder,
    paddings=PADDINGS,
    backbone=Backbone(
        transformer="ZImageTransformer2DModel",
        first=_FIRST,
        last_norm=f"{_FINAL}.adaLN_modulation",
        last=f"{_FINAL}.linear",
        text_input="cap_embedder.1",
        unquantized=r"t_embedder\.mlp\..+",
        lora_targets=_lora_targets,
        run=run,
        pack=pack,
        token_width=_token_width,
        network=network,
        block_memory=block_memory,
        block_names={"layers": "layers", "noise_refiner": "noise refiner", "context_refiner": "context refiner"},
        image_blocks=("noise_refiner", "layers"),
        image_free=r"cap_embedder\.1|t_embedder\..+|.+\.adaLN_modulation\..+|context_refiner\..+",
        adapter_classes={
            "asymflow": "AsymZImageTransformer2DModel",
            "latent": "ZImageTransformer2DModelAdapter",
            "l2p": "L2pZImageTransformer2DModelAdapter",
        },
        adapter_keys=tuple(name for name in BASE if name not in ("all_patch_size", "all_f_patch_size", "in_channels")),
    ),
    published={"Z-Image": PublishedModel("Z-Image", BASE, TokenGeometry(16, 64))},
)
