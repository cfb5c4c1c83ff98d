"""Memory of one finetuning worker by part, from shapes alone, to find settings that fit a GPU.

Permanent memory (weights, gradients, optimizer, average) is counted; activations are estimated. Not included are the
CUDA context, workspaces, temporary memory of kernels, and fragmentation: leave some GiB.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from asymflow.models.geometry import Linear, network, values_kept
from pipelines.train.devices import BYTES, precision_name
from pipelines.train.finetune.config import FinetuneSettings
from pipelines.train.finetune.flops import PERCEPTUAL_COSTS, student_network

if TYPE_CHECKING:
    from asymflow.models.adapted import AdaptedFlux2

FLOAT32 = 4
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
    """Frozen: the transformer without the three modules that training replaced"""
    original: int
    """Frozen: those three modules, used by the teacher"""
    trained: dict[str, int]
    """By parameter name"""
    largest_block: int
    """Frozen values of the largest block, which ZeRO-3 gathers to use it"""

    @property
    def total_trained(self) -> int:
        """Return the number of trained values."""
        return sum(self.trained.values())


def count_values(model: "AdaptedFlux2") -> Values:
    """Return the numbers of values of a model in training, on any device, including `meta`."""
    frozen = {name: p.numel() for name, p in model.named_parameters() if not p.requires_grad}
    original = sum(n for name, n in frozen.items() if name.startswith("latent_modules."))
    blocks = [*model.transformer.transformer_blocks, *model.transformer.single_transformer_blocks]
    return Values(
        base=sum(frozen.values()) - original,
        original=original,
        trained={name: p.numel() for name, p in model.trainable().items()},
        largest_block=max(sum(p.numel() for p in block.parameters() if not p.requires_grad) for block in blocks),
    )


def plan_values(settings: FinetuneSettings, config: Mapping[str, Any]) -> Values:
    """Return the same as `count_values` from the transformer's `config` alone, without building a model."""
    latent, ends, head = network(config).linears, ("x_embedder", "norm_out.linear", "proj_out"), settings.ddt
    places = {layer.name: place for place, layer in enumerate(latent)}
    trained = [layer for layer in student_network(settings, config).linears if layer.trained]
    trained.sort(key=lambda layer: places.get(layer.name.split(".lora_")[0], len(places)))
    values = {layer.name: _values(layer) for layer in trained}
    if settings.model == "ddt":
        values |= {f"head.blocks.{i}.block.attn.norms": 2 * head.head_width for i in range(head.blocks)}
    # norms of queries and keys: a double block has them for each of its streams
    norms = {"transformer_blocks": 4 * config["attention_head_dim"]}
    norms["single_transformer_blocks"] = norms["transformer_blocks"] // 2
    blocks = {"transformer_blocks": config["num_layers"], "single_transformer_blocks": config["num_single_layers"]}
    block = {
        kind: norms[kind] + sum(_values(layer) for layer in latent if layer.name.startswith(f"{kind}.0."))
        for kind in blocks
    }
    original = sum(_values(layer) for layer in latent if layer.name in ends)
    frozen = sum(_values(layer) for layer in latent) + sum(norms[kind] * number for kind, number in blocks.items())
    if config["guidance_embeds"]:  # as large as the embedding of the time
        time = "time_guidance_embed.timestep_embedder."
        frozen += sum(_values(layer) for layer in latent if layer.name.startswith(time))
    return Values(frozen - original, original, values, max(block[kind] for kind, number in blocks.items() if number))


def _values(layer: Linear) -> int:
    """Return the number of a layer's values; DDT head layers outside of FLUX.2's blocks have a bias."""
    bias = layer.name.startswith("head.") and ".block." not in layer.name
    return layer.inputs * layer.outputs + bias * layer.outputs


def static_memory(settings: FinetuneSettings, values: Values) -> dict[str, float]:
    """Return the permanent bytes of one worker, by part."""
    resources, trained, size = settings.resources, values.total_trained, BYTES[precision_name(settings.resources)]
    stage, workers = resources.zero_stage, resources.workers
    shard = {kind: workers if stage >= least else 1 for kind, least in SHARDED_FROM.items()}
    gathered = 2 * size * values.largest_block if stage == 3 and workers > 1 else 0
    parts = {
        "base weights": size * values.base / shard["weights"] + gathered,
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
    width = config["num_attention_heads"] * config["attention_head_dim"]
    head = settings.ddt.heads * settings.ddt.head_width if settings.model == "ddt" else 0
    head_blocks = settings.ddt.blocks if head else 0
    kept = values_kept(config, bool(lora), bool(lora and lora.dropout), head)
    tokens, double, single = image_tokens + text_tokens, config["num_layers"], config["num_single_layers"]
    # the products are made with copies of the trained values in the base's type, which are kept until then too
    copies = size * values.total_trained if size != FLOAT32 else 0
    if settings.resources.gradient_checkpointing:
        entering = (double + single) * tokens * width + head_blocks * image_tokens * head
        activations = entering + max(tokens * kept.double, tokens * kept.single, image_tokens * kept.head)
        copies /= double + single
    else:
        activations = tokens * (double * kept.double + single * kept.single) + head_blocks * image_tokens * kept.head
    pixels = image_tokens * settings.pixels.patch_size**2
    parts = {
        "activations of the transformer": images * size * activations + copies,
        "activations of the loss": images * pixels * LOSS_BYTES_PER_PIXEL,
    }
    if has_perceptual(settings):
        cost = PERCEPTUAL_COSTS[settings.loss.perceptual.net]  # type: ignore[union-attr]
        parts["activations of the perceptual network"] = (
            images * pixels * (cost.bytes_per_pixel + DECODING_BYTES_PER_PIXEL)
        )
    return parts
