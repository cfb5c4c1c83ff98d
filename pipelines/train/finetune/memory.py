"""Memory of one finetuning worker by part, from shapes alone, to find settings that fit a GPU.

Permanent memory (weights, gradients, optimizer, average) is counted; activations are estimated. Not included are the
CUDA context, workspaces, temporary memory of kernels, and fragmentation: leave some GiB.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from asymflow.models.geometry import values_kept
from asymflow.models.l2p_network import detailer_values_kept
from asymflow.models.latent import backbone_of_config
from asymflow.models.network import NF4_BLOCK, Quantization, tokens_by_stream
from pipelines.train.devices import BYTES, precision_name
from pipelines.train.finetune.config import FinetuneSettings
from pipelines.train.finetune.flops import PERCEPTUAL_COSTS, student_network

if TYPE_CHECKING:
    from asymflow.models.adapted import AdaptedModel

FLOAT32 = 4
QUANTIZED_BYTES: dict[Quantization, float] = {
    "nf4": 0.5 + 1 / NF4_BLOCK + FLOAT32 / (256 * NF4_BLOCK),
    "int8": 1,
    "fp8": 1,
}
"""Bytes per quantized value. NF4: 4 bits, an 8-bit scale per block, and a float32 scale per 256 of these. The float32
scale per row of int8 is not counted"""
_BLOCK = re.compile(r"(\w+\.\d+)\.\w")
"""A layer in a list of blocks, of which it is the name"""
BUCKET = 500_000_000
"""Values per gradient bucket that workers exchange at once: DeepSpeed 0.19's `reduce_bucket_size`"""
SHARDED_FROM = {"moments": 1, "gradients": 2, "weights": 3}
"""ZeRO stage from which on each part is sharded over the workers"""
LOSS_BYTES_PER_PIXEL, DECODING_BYTES_PER_PIXEL = 12, 91
"""Bytes per pixel kept by the loss, and by the conversion from Oklab to the sRGB of the perceptual network, in
float32"""


@dataclass(frozen=True)
class Values:
    """Numbers of values in the parts of a model."""

    base: int
    """Frozen: the transformer without the modules that training replaced"""
    original: int
    """Frozen: those modules, used by the teacher"""
    trained: dict[str, int]
    """By parameter name"""
    largest_block: int
    """Frozen values of the largest block, which ZeRO-3 gathers to use it"""
    quantizable: int
    """Those of `base` that `base_quantization` stores in fewer bits"""
    largest_quantizable: int
    """Values of the largest matrix among them, which each use dequantizes"""

    @property
    def total_trained(self) -> int:
        """Return the number of trained values."""
        return sum(self.trained.values())


def count_values(model: "AdaptedModel") -> Values:
    """Return the numbers of values of a model in training, on any device, including `meta`."""
    frozen = {name: p.numel() for name, p in model.named_parameters() if not p.requires_grad}
    original = sum(n for name, n in frozen.items() if name.startswith("latent_modules."))
    kinds = model.transformer._repeated_blocks
    blocks = [module for module in model.transformer.modules() if type(module).__name__ in kinds]
    quantizable = [model.transformer.get_submodule(name).weight.numel() for name in model.frozen_linears()]
    return Values(
        base=sum(frozen.values()) - original,
        original=original,
        trained={name: p.numel() for name, p in model.trainable().items()},
        largest_block=max(sum(p.numel() for p in block.parameters() if not p.requires_grad) for block in blocks),
        quantizable=sum(quantizable),
        largest_quantizable=max(quantizable, default=0),
    )


def plan_values(settings: FinetuneSettings, config: Mapping[str, Any]) -> Values:
    """Return the same as `count_values` from the transformer's `config` alone, without building a model."""
    backbone, head = backbone_of_config(config), settings.ddt
    latent = backbone.network(config)
    student = student_network(settings, config)
    places = {name: place for place, name in enumerate(part.name for part in latent.parts)}
    trained = [part for part in student.parts if part.trained]
    trained.sort(key=lambda part: places.get(part.name.split(".lora_")[0], len(places)))
    values = {part.name: part.values for part in trained}
    if settings.model == "ddt":
        values |= {f"head.blocks.{i}.block.attn.norms": 2 * head.head_width for i in range(head.blocks)}
    parts = {part.name: part.values for part in latent.parts}
    whole = tuple(f"{name}." for name in backbone.trained)
    replaced = {name for name in parts if name in values or f"{name}.".startswith(whole)}
    original = sum(parts[name] for name in replaced)
    quantizable = [
        layer.inputs * layer.outputs
        for layer in latent.linears
        if layer.name not in replaced
        and layer.name != backbone.text_input
        and layer.inputs % NF4_BLOCK == 0
        and not re.fullmatch(backbone.unquantized, layer.name)
    ]
    blocks: dict[str, int] = {}
    for name, number in parts.items():
        if inside := _BLOCK.match(name):
            blocks[inside[1]] = blocks.get(inside[1], 0) + number * (name not in replaced)
    return Values(
        base=sum(parts.values()) - original,
        original=original,
        trained=values,
        largest_block=max(blocks.values()),
        quantizable=sum(quantizable),
        largest_quantizable=max(quantizable, default=0),
    )


def static_memory(settings: FinetuneSettings, values: Values) -> dict[str, float]:
    """Return the permanent bytes of one worker, by part."""
    resources, trained, size = settings.resources, values.total_trained, BYTES[precision_name(settings.resources)]
    stage, workers = resources.zero_stage, resources.workers
    shard = {kind: workers if stage >= least else 1 for kind, least in SHARDED_FROM.items()}
    gathered = 2 * size * values.largest_block if stage == 3 and workers > 1 else 0
    base: float = size * values.base
    if settings.base_quantization:
        base -= (size - QUANTIZED_BYTES[settings.base_quantization]) * values.quantizable
    parts = {
        "base weights": base / shard["weights"] + gathered,
        "original first and last layers": size * values.original / shard["weights"],
        "trained values": FLOAT32 * trained / shard["weights"],
        "copy that ZeRO 1 and 2 update": FLOAT32 * trained / workers if stage in (1, 2) else 0,
        "gradients": FLOAT32 * trained / shard["gradients"],
        "buckets of gradients": buckets(settings) * FLOAT32 * BUCKET,
        "optimizer": optimizer_bytes(settings.optim.optimizer) * trained / shard["moments"],
        "moving average": FLOAT32 * trained,
    }
    if has_perceptual(settings):
        parts["perceptual network"] = FLOAT32 * PERCEPTUAL_COSTS[settings.loss.perceptual.net].values  # type: ignore[union-attr]
    return {name: size for name, size in parts.items() if size}


def buckets(settings: FinetuneSettings) -> int:
    """Return the number of gradient buckets: on GPUs two, one sent while the next is filled; ZeRO-3 has one."""
    stage = settings.resources.zero_stage
    return 0 if stage == 0 else 1 if stage == 3 or not settings.resources.use_gpu else 2


def optimizer_bytes(optimizer: str) -> float:
    """Return the bytes of a trained value's two moments.

    They are float32, or 8-bit with a float32 scale per block of 256.
    """
    return 8 if optimizer == "adam" else 2 * (1 + FLOAT32 / 256)


def has_perceptual(settings: FinetuneSettings) -> bool:
    """Return whether the loss has a perceptual network."""
    return settings.loss.kind == "variance_reduced" and settings.loss.perceptual is not None


def activation_memory(
    settings: FinetuneSettings,
    config: Mapping[str, Any],
    values: Values,
    image_tokens: int,
    text_tokens: int,
    images: int,
) -> dict[str, float]:
    """Return the estimated bytes that a forward pass on `images` keeps for the backward pass, by part."""
    lora, size = settings.lora, BYTES[precision_name(settings.resources)]
    backbone = backbone_of_config(config)
    head = settings.ddt.heads * settings.ddt.head_width if settings.model == "ddt" else 0
    head_blocks = settings.ddt.blocks if head else 0
    with_lora, dropout = bool(lora), bool(lora and lora.dropout)
    head_kept = values_kept(config, with_lora, dropout, head).head if head else 0
    tokens = tokens_by_stream(image_tokens, text_tokens)
    kinds = backbone.block_memory(config, with_lora, dropout)
    largest = [tokens[kind.stream] * kind.kept for kind in kinds]
    shallow, detailer = 0.0, 0.0
    if settings.model == "l2p":
        # a block that is trained whole keeps about as much as one with LoRA
        whole = [kind for kind in backbone.block_memory(config, True, False) if kind.stream != "text"]
        frozen = [kind for kind in kinds if kind.stream != "text"]
        more = max(tokens[a.stream] * (b.kept - a.kept) for a, b in zip(frozen, whole, strict=True))
        largest = [tokens[kind.stream] * kind.kept for kind in whole]
        shallow = 2 * settings.l2p.blocks * more
        side, features = settings.pixels.patch_size, kinds[-1].width
        detailer = image_tokens * detailer_values_kept(side, features, settings.l2p.channels)
    # the products are made with copies of the trained values in the base's type, which are kept until then too
    copies: float = size * values.total_trained if size != FLOAT32 else 0
    if settings.resources.gradient_checkpointing:
        entering = sum(kind.blocks * tokens[kind.stream] * kind.width for kind in kinds)
        entering += head_blocks * image_tokens * head
        activations = entering + max(*largest, image_tokens * head_kept, detailer)
        copies /= sum(kind.blocks for kind in kinds)
    else:
        activations = sum(kind.blocks * tokens[kind.stream] * kind.kept for kind in kinds)
        activations += head_blocks * image_tokens * head_kept + shallow + detailer
    pixels = image_tokens * settings.pixels.patch_size**2
    parts = {
        "activations of the transformer": images * size * activations + copies,
        "activations of the loss": images * pixels * LOSS_BYTES_PER_PIXEL,
    }
    if settings.base_quantization == "fp8":
        parts["weights of a block, in full"] = size * values.largest_block
    elif settings.base_quantization:
        parts["largest matrix, dequantized"] = size * values.largest_quantizable
    if has_perceptual(settings):
        cost = PERCEPTUAL_COSTS[settings.loss.perceptual.net]  # type: ignore[union-attr]
        parts["activations of the perceptual network"] = (
            images * pixels * (cost.bytes_per_pixel + DECODING_BYTES_PER_PIXEL)
        )
    return parts
