"""Training step of FLUX.2 klein 9B's geometry on one GPU, by setting: time, MFU, HFU and peak memory.

    python benchmarks/klein_9b.py [--settings plain,compile] [--batch 8] [--steps 10] [--scaled]

Weights are random and created on the GPU; images are 1024 x 1024 (4,096 tokens) with 512 tokens of text. A step is
that of the finetune: variance-reduced loss, backward pass, DeepSpeed, optimizer and moving average. Each setting runs
in a separate process with micro-batches of 1, 2, 4, ... up to --batch images; its row shows the largest one that fits.
MFU counts the operations of the method, HFU also those that gradient checkpointing repeats. "by plan" is the
memory that the finetune's --dry-run estimates. Without a GPU, or with --scaled, a network of 2 + 4 blocks of width 256
is used.
"""

import argparse
import json
import os
import platform
import resource
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402

from asymflow.ema import PowerEMA  # noqa: E402
from asymflow.models.geometry import KLEIN_9B  # noqa: E402
from asymflow.oklab import RELEASED  # noqa: E402
from asymflow.subspace import Subspace  # noqa: E402
from pipelines.train.devices import peak_tflops, precision  # noqa: E402
from pipelines.train.finetune.batches import Batch  # noqa: E402
from pipelines.train.finetune.config import FinetuneSettings  # noqa: E402
from pipelines.train.finetune.flops import image_flops  # noqa: E402
from pipelines.train.finetune.memory import activation_memory, count_values, static_memory  # noqa: E402
from pipelines.train.finetune.model import adapt  # noqa: E402

CUDA = torch.cuda.is_available()
GIB = 2**30
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "checkpointing": {"gradient_checkpointing": True},
    "compile": {"compile": True},
    "compile + checkpointing": {"compile": True, "gradient_checkpointing": True},
    "perceptual": {"perceptual": True},
    "ZeRO 2": {"zero_stage": 2},
    "ZeRO 3": {"zero_stage": 3},
    "adam8bit": {"optimizer": "adam8bit"},
}
"""Each differs from the first in what it names"""


class Shapes(NamedTuple):
    config: dict[str, Any]
    side: int
    text_tokens: int
    lora_rank: int
    perceptual: str

    @property
    def image_tokens(self) -> int:
        return (self.side // 16) ** 2


TRUE = Shapes(KLEIN_9B, side=1024, text_tokens=512, lora_rank=256, perceptual="vgg")
SCALED = Shapes(
    {
        **KLEIN_9B,
        "num_layers": 2,
        "num_single_layers": 4,
        "num_attention_heads": 4,
        "attention_head_dim": 64,
        "joint_attention_dim": 384,
        "axes_dims_rope": (16, 16, 16, 16),
    },
    side=256,
    text_tokens=64,
    lora_rank=32,
    perceptual="squeeze",
)


def settings_of(name: str, shapes: Shapes) -> FinetuneSettings:
    """Return settings of one worker and one micro-batch per step. Raises ValueError for invalid combinations."""
    given = dict(SETTINGS[name])
    perceptual = {"net": shapes.perceptual, "weights": "random"} if given.pop("perceptual", False) else None
    optimizer = given.pop("optimizer", "adam")
    return FinetuneSettings.model_validate(
        {
            **{name: "not read" for name in ("curated", "encoded", "basis", "base")},
            "lora": {"rank": shapes.lora_rank},
            "optim": {"batch": 1, "optimizer": optimizer},
            "loss": {"perceptual": perceptual},
            "resources": {"zero_stage": 0, "use_gpu": CUDA, **given},
        }
    )


def make_model(settings: FinetuneSettings, shapes: Shapes):
    """Create the model on the device in its compute type: 9B values in float32 exceed the memory of many machines."""
    from diffusers import Flux2Transformer2DModel  # after asymflow and its torchvision shim

    dtype, device = precision(settings.resources), "cuda" if CUDA else "cpu"
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    with torch.device(device):
        transformer = Flux2Transformer2DModel(**shapes.config)
    torch.set_default_dtype(torch.float32)
    A = torch.linalg.qr(torch.randn(768, shapes.config["in_channels"])).Q
    model = adapt(settings, transformer, Subspace(A, 2.4, "channel_first", RELEASED, {})).to(device)
    model.set_precision(dtype)
    if settings.resources.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    if settings.resources.compile:
        model.compile_blocks()
    return model.train()


def make_batch(shapes: Shapes, images: int) -> Batch:
    shape = (images, 3, shapes.side, shapes.side)
    return Batch(
        images=torch.rand(shape) * 2 - 1,
        z_0=torch.randn(images, shapes.image_tokens, shapes.config["in_channels"]),
        text=torch.randn(images, shapes.text_tokens, shapes.config["joint_attention_dim"]),
        text_mask=torch.ones(images, shapes.text_tokens).bool(),
        noise=torch.randn(shape),
        sigma=torch.rand(images),
        weight=torch.ones(images),
        keys=[str(i) for i in range(images)],
        key_sums=torch.ones(images).double(),
    )


def init_single_process() -> None:
    """Initialize torch.distributed for this single process."""
    import deepspeed

    from pipelines.core.prebuild import put_ninja_on_path

    put_ninja_on_path()
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_SIZE="1"
    )
    deepspeed.init_distributed("nccl" if CUDA else "gloo", auto_mpi_discovery=False, verbose=False)


def measure(name: str, shapes: Shapes, most: int, steps: int) -> Iterator[dict[str, float]]:
    """Yield the results of growing micro-batches until one does not fit."""
    from pipelines.train.engine import backward_and_step, make_engine
    from pipelines.train.finetune.task import make_objective, parameter_groups
    from pipelines.train.state import TrainableState

    init_single_process()
    settings = settings_of(name, shapes)
    model = make_model(settings, shapes)
    values = count_values(model)  # before ZeRO-3 cuts them up
    groups = parameter_groups(model, settings.optim)
    engine, _ = make_engine(make_objective(model, settings.loss), groups, settings, micro_batch=1, accumulation=1)
    state = TrainableState(engine, model.trainable())
    average = PowerEMA(state.values(), start_step=1)
    images = 1
    while images <= most:
        batch = make_batch(shapes, images).to(engine.device)
        seconds = []
        for step in range(1, steps + 3):  # two to warm up
            started = time.perf_counter()
            backward_and_step(engine, [batch])
            average.update(step, state.values())
            if CUDA:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
        tokens = (shapes.image_tokens, shapes.text_tokens)
        flops = image_flops(settings, shapes.config, *tokens)
        planned = static_memory(settings, values) | activation_memory(settings, shapes.config, values, *tokens, images)
        yield {
            "images": images,
            "seconds": statistics.median(seconds[2:]),
            "model": images * flops.model,
            "executed": images * flops.executed,
            "peak": peak_bytes(),
            "planned": sum(planned.values()),
        }
        images *= 2


def peak_bytes() -> int:
    """Peak memory so far: of tensors on a GPU, of the whole process (including libraries) on a CPU."""
    return torch.cuda.max_memory_allocated() if CUDA else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def worker(name: str, shapes: Shapes, most: int, steps: int) -> None:
    """Print a line of JSON for each micro-batch that fits."""
    try:
        for row in measure(name, shapes, most, steps):
            print(json.dumps(row), flush=True)
    except torch.OutOfMemoryError:
        print(json.dumps("does not fit"), flush=True)


def run_in_process(name: str, arguments: list[str]) -> dict[str, float] | str:
    """Return the row of the largest micro-batch that fits, or the reason why none does."""
    command = [sys.executable, __file__, "--worker", name, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    printed = [json.loads(line) for line in done.stdout.splitlines() if line.startswith(('{"images"', '"'))]
    rows = [row for row in printed if isinstance(row, dict)]
    if rows:
        return rows[-1]
    if printed or done.returncode == -9:
        return "does not fit"
    return f"skipped: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"


def product_rate(size: int) -> float:
    """Return the operations per second of square matrix products in the network's compute type."""
    device, dtype = ("cuda", torch.bfloat16) if CUDA else ("cpu", torch.float32)
    a = torch.randn(size, size, device=device, dtype=dtype)
    times = []
    for _ in range(10):
        started = time.perf_counter()
        a @ a
        if CUDA:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return 2 * size**3 / min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", help=f"some of {', '.join(SETTINGS)}; default: all")
    parser.add_argument("--batch", type=int, help="most images at once; default: 8, scaled 4")
    parser.add_argument("--steps", type=int, help="timed steps each; default: 10, scaled 3")
    parser.add_argument("--scaled", action="store_true", help="the small network also on a GPU")
    parser.add_argument("--worker", choices=SETTINGS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    scaled = args.scaled or not CUDA
    shapes = SCALED if scaled else TRUE
    most, steps = args.batch or (4 if scaled else 8), args.steps or (3 if scaled else 10)
    if args.worker:
        worker(args.worker, shapes, most, steps)
        return
    names = [name.strip() for name in args.settings.split(",")] if args.settings else list(SETTINGS)
    if unknown := set(names) - set(SETTINGS):
        parser.error(f"--settings: {', '.join(sorted(unknown))}; known are {', '.join(SETTINGS)}")

    rate = product_rate(8192 if CUDA else 2048)
    device = torch.cuda.get_device_name() if CUDA else f"{platform.processor() or platform.machine()} CPU"
    peak = (1e12 * (peak_tflops(device) or 0) if CUDA else 0) or rate
    print(f"{device}, torch {torch.__version__}, CUDA {torch.version.cuda or 'none'}", end="")
    print("" if CUDA else f", {torch.get_num_threads()} threads. NO GPU: these are the CPU's numbers, in float32")
    print(f"matrix products: {rate / 1e12:.2f} TFLOP/s measured; MFU and HFU are of {peak / 1e12:.2f}", end="")
    print(" (the data sheet's)" if peak != rate else " (the same)")
    c = shapes.config
    print(f"{c['num_layers']} + {c['num_single_layers']} blocks, ", end="")
    print(f"width {c['num_attention_heads'] * c['attention_head_dim']}, ", end="")
    print(f"{shapes.image_tokens:,} image and {shapes.text_tokens} text tokens; {steps} steps\n")
    print(f"{'setting':24}{'images':>9}{'s a step':>10}{'MFU':>7}{'HFU':>7}{'peak GiB':>10}{'by plan':>9}")
    arguments = ["--batch", str(most), "--steps", str(steps), *(["--scaled"] if scaled else [])]
    for name in names:
        row = run_in_process(name, arguments)
        if isinstance(row, str):
            print(f"{name:24} {row}", flush=True)
            continue
        mfu, hfu = (row[kind] / row["seconds"] / peak for kind in ("model", "executed"))
        print(f"{name:24}{row['images']:>9}{row['seconds']:>10.3f}{mfu:>7.1%}{hfu:>7.1%}", end="")
        print(f"{row['peak'] / GIB:>10.2f}{row['planned'] / GIB:>9.2f}", flush=True)


if __name__ == "__main__":
    main()
