"""Plan of training from scratch: memory and time from shapes alone, without data, Ray or GPU."""

from dataclasses import replace

from asymflow.models.jit_config import SIZES
from pipelines.core.artifacts import MissingArtifact, load_artifact
from pipelines.core.storage import StorageError
from pipelines.core.text_table import format_table
from pipelines.train.devices import BYTES, device_of, precision_name
from pipelines.train.pretrain.config import PretrainSettings
from pipelines.train.pretrain.flops import attention_flops, forward_flops, linear_flops, training_flops
from pipelines.train.sample_order import slots_per_worker

GIB = 2**30
SIDE, IMAGES = 256, 1_281_167
"""ImageNet's, for data that cannot be read"""
UTILIZATION = 0.45
FLOAT32_TFLOPS = 67.0
"""Peak of an H100 without tensor cores, for attention in float32"""
PAPER = "the paper: about 1,750 H100 hours for H/16, 600 epochs of 1,024 per step"


def print_plan(settings: PretrainSettings) -> dict[str, float]:
    """Print the table. Returns the numbers."""
    numbers, rows = plan(settings)
    print(format_table(rows))
    return numbers


def plan(settings: PretrainSettings) -> tuple[dict[str, float], list[list[str]]]:
    """Return the numbers, and the rows of the table."""
    config, optim, resources = settings.jit, settings.optim, settings.resources
    side, images, source = _data(settings)
    tokens = (side // config.patch_size) ** 2
    values = config.parameters  # without REPA's projector: it is dropped after training
    memory = memory_of(settings, values, tokens)
    forward = forward_flops(config, tokens)
    step = optim.batch * training_flops(config, tokens)
    device = device_of(resources)
    epochs = optim.steps * optim.batch / images
    numbers = {
        "parameters": values,
        "gflop_forward": forward / 1e9,
        "tflop_step": step / 1e12,
        "memory_gib": sum(memory.values()) / GIB,
        "epochs": epochs,
    }
    attention = attention_flops(config, tokens) / 1e9
    fits = _fits(numbers, device.gib)
    published = config == replace(SIZES[settings.network.size], classes=settings.classes)
    rank = f"{settings.subspace.kind} rank {settings.subspace.rank} of {config.patch_dim}"
    rows = [
        ["model", f"JiT-{settings.network.size}/{config.patch_size}" if published else "JiT", rank],
        ["parameters", f"{values:,}", f"width {config.width}, {config.depth} blocks, {config.heads} heads"],
        ["tokens per image", f"{tokens}", f"and {config.context_tokens} of the class from block {config.context_from}"],
        ["images", f"{images:,}", source],
        ["GFLOP per forward pass", f"{forward / 1e9:,.1f}", f"of which attention {attention:,.1f}"],
        ["TFLOP per step", f"{step / 1e12:,.2f}", f"{optim.batch} images"],
        *([f"GiB: {name}", f"{size / GIB:.2f}", ""] for name, size in memory.items()),
        ["GiB per worker", f"{numbers['memory_gib']:.2f}", f"ZeRO {resources.zero_stage}; {fits}"],
        ["checkpoint, GiB", f"{16 * values / GIB:.2f}", "values, average and two moments"],
        ["epochs", f"{epochs:,.1f}", f"{optim.steps:,} steps"],
    ]
    if settings.repa:
        rows.append(["REPA", "not counted", f"a forward pass of {settings.repa.encoder}, and the projector"])
    if device.tflops is None:
        return numbers, [*rows, ["hours", "?", f"the peak of {device.name} is unknown; set resources.peak_tflops"]]
    seconds = seconds_per_image(settings, tokens, device.tflops)
    hours = seconds * optim.steps * optim.batch / 3600
    numbers["worker_hours"] = hours
    slow = f", attention in float32 at {FLOAT32_TFLOPS:.0f}" if config.attention_float32 and resources.use_gpu else ""
    at = f"at {UTILIZATION:.0%} of {device.tflops:,.0f} TFLOP/s{slow} ({device.name}), assumed"
    return numbers, [*rows, ["worker hours", f"{hours:,.0f}", at], ["", "", PAPER]]


def seconds_per_image(settings: PretrainSettings, tokens: int, tflops: float) -> float:
    """Return the seconds of training per image and worker."""
    config = settings.jit
    slow = config.attention_float32 and settings.resources.use_gpu
    fast_rate, slow_rate = 1e12 * tflops * UTILIZATION, 1e12 * FLOAT32_TFLOPS * UTILIZATION
    attention = attention_flops(config, tokens) / (slow_rate if slow else fast_rate)
    return 3 * (linear_flops(config, tokens) / fast_rate + attention)


def memory_of(settings: PretrainSettings, values: int, tokens: int) -> dict[str, float]:
    """Return the bytes of one worker, by part; activations are estimated."""
    resources, config = settings.resources, settings.jit
    stage, workers = resources.zero_stage, resources.workers
    micro = resources.micro_batch or slots_per_worker(settings.optim.batch, workers, 1)
    size = BYTES[precision_name(resources)]
    every = tokens + config.context_tokens
    # kept for a block's backward pass: inputs of its products and norms, q, k, v, and the SwiGLU's hidden values
    kept = every * (11 * config.width + 3 * config.hidden) * size
    kept += every * 4 * config.width * (4 if config.attention_float32 else size)
    entering = config.depth * every * config.width * size
    stored = entering + kept if resources.gradient_checkpointing else config.depth * kept
    return {
        "weights": 4 * values,
        "ZeRO's copy of the weights": 4 * values / workers if stage else 0,
        "gradients": 4 * values / (workers if stage == 2 else 1),
        "moments": 8 * values / (workers if stage else 1),
        "moving average": 4 * values,
        f"activations of {micro}": micro * stored,
    }


def _fits(numbers: dict[str, float], gib: float | None) -> str:
    if gib is None:
        return ""
    return f"of {gib:.0f}" if numbers["memory_gib"] < gib else f"DOES NOT FIT in {gib:.0f}"


def _data(settings: PretrainSettings) -> tuple[int, int, str]:
    """Return (side, number of training images, source of both)."""
    try:
        curated = load_artifact(settings.curated, "curate")
    except (MissingArtifact, StorageError, OSError):
        return SIDE, IMAGES, f"ASSUMED, as ImageNet: {settings.curated} cannot be read"
    width, _ = curated.manifest["config"]["buckets"][0]
    return width, int(curated.manifest["metrics"]["kept_train"]), f"from {settings.curated}"
