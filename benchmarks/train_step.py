"""Cost of the method in a training step of the toy model: time by objective, and memory of teacher and moving average.

    python benchmarks/train_step.py [--batch 48] [--steps 10] [--checkpointing] [--parts time,memory,update]

Time: variance-reduced steps against plain flow matching, each objective in a separate process to separate their
peak memories; rounds alternate between the objectives and medians are compared, because machines are noisy. The ratio
of operations is printed beside them: the frozen base's backward pass costs as much as its forward pass, so the teacher
costs half of a plain step, and a third of one with gradient checkpointing.

Memory: weights of student, teacher and moving average over the student's alone; of the toy from its tensors, of the
9B model from its shapes.

Update: clipping, AdamW and moving average of all trained values, tensor by tensor as in a plain loop, as on a processor
and as on a GPU (run here on the processor), in interleaved rounds; with the operations that the host dispatches, and
how often it reads a value, for which it would wait for a GPU. Bar: 0 reads on a GPU.
"""

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402

from asymflow.ema import PowerEMA  # noqa: E402
from asymflow.models.flux2 import PixelFlux2  # noqa: E402
from asymflow.oklab import RELEASED  # noqa: E402
from asymflow.subspace import Subspace  # noqa: E402
from pipelines.core.base_models import read_geometry  # noqa: E402
from pipelines.toy.flow import new_transformer  # noqa: E402
from pipelines.train.engine import make_optimizer  # noqa: E402
from pipelines.train.finetune.batches import Batch  # noqa: E402
from pipelines.train.finetune.config import FinetuneSettings, Optim  # noqa: E402
from pipelines.train.finetune.flops import image_flops  # noqa: E402
from pipelines.train.finetune.memory import static_memory  # noqa: E402
from pipelines.train.finetune.plan import plan  # noqa: E402
from pipelines.train.finetune.task import make_objective  # noqa: E402

OBJECTIVES: dict[str, dict] = {
    "flow matching": {"kind": "flow_matching"},
    "variance reduced": {"perceptual": None},
    "variance reduced + perceptual": {"perceptual": {"net": "squeeze", "weights": "random"}},
}
GEOMETRY = read_geometry(str(Path(__file__).parents[1] / "models/toy_klein"))
IMAGE_TOKENS, TEXT_TOKENS, TEXT_WIDTH, RANK = (64 // GEOMETRY.pixels_per_token) ** 2, 16, 96, 64
MEMORY_BAR = 1.10


def settings_of(objective: str, checkpointing: bool = False, **sections) -> FinetuneSettings:
    return FinetuneSettings.model_validate(
        {
            **{name: "/not/read" for name in ("curated", "encoded", "basis", "base")},
            "loss": OBJECTIVES[objective],
            "lora": {"rank": RANK},
            "resources": {"gradient_checkpointing": checkpointing, "zero_stage": 0},
            **sections,
        }
    )


def make_model() -> PixelFlux2:
    torch.manual_seed(0)
    A = torch.linalg.qr(torch.randn(3 * GEOMETRY.pixels_per_token**2, GEOMETRY.token_width)).Q
    transformer = new_transformer(GEOMETRY.token_width, TEXT_WIDTH)
    model = PixelFlux2.from_latent(transformer, Subspace(A, 2.4, "channel_first", RELEASED, {}))
    model.add_lora(RANK)
    return model.train()


def make_batch(count: int) -> Batch:
    return Batch(
        images=torch.rand(count, 3, 64, 64) * 2 - 1,
        z_0=torch.randn(count, IMAGE_TOKENS, GEOMETRY.token_width),
        text=torch.randn(count, TEXT_TOKENS, TEXT_WIDTH),
        text_mask=torch.ones(count, TEXT_TOKENS).bool(),
        noise=torch.randn(count, 3, 64, 64),
        sigma=torch.rand(count),
        weight=torch.ones(count),
        keys=[str(i) for i in range(count)],
        key_sums=torch.ones(count).double(),
    )


def make_step(name: str, batch: int, checkpointing: bool):
    """Return a function that runs one optimizer step in bare PyTorch, on random data of the demo's shapes."""
    model = make_model()
    if checkpointing:
        model.enable_gradient_checkpointing()
    objective = make_objective(model, settings_of(name).loss)
    optimizer = torch.optim.AdamW(model.trainable().values(), lr=1e-4)
    data = make_batch(batch)

    def step() -> None:
        loss, _ = objective(**data.inputs())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def worker(name: str, batch: int, checkpointing: bool) -> None:
    """Answer each line on stdin with the time of one step and the peak memory so far."""
    step = make_step(name, batch, checkpointing)
    step()
    for _ in sys.stdin:
        started = time.perf_counter()
        step()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps([time.perf_counter() - started, peak]), flush=True)


def compare_times(batch: int, steps: int, checkpointing: bool) -> None:
    processes = {}
    for name in OBJECTIVES:
        command = [sys.executable, __file__, "--worker", name, "--batch", str(batch)]
        command += ["--checkpointing"] if checkpointing else []
        processes[name] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    seconds: dict[str, list[float]] = {name: [] for name in OBJECTIVES}
    peaks: dict[str, float] = {}
    for _ in range(steps):
        for name, process in processes.items():
            assert process.stdin
            assert process.stdout
            process.stdin.write("step\n")
            process.stdin.flush()
            elapsed, peaks[name] = json.loads(process.stdout.readline())
            seconds[name].append(elapsed)
    for process in processes.values():
        process.communicate()
    base = next(iter(OBJECTIVES))
    config, pixels = new_transformer(GEOMETRY.token_width, TEXT_WIDTH).config, {"patch_size": GEOMETRY.pixels_per_token}
    flops = {
        name: image_flops(settings_of(name, checkpointing, pixels=pixels), config, IMAGE_TOKENS, TEXT_TOKENS).executed
        for name in OBJECTIVES
    }
    print(f"batch {batch}, {steps} steps each, {torch.get_num_threads()} threads, ", end="")
    print("with gradient checkpointing" if checkpointing else "all activations kept")
    print(f"{'objective':32}{'ms per step':>10}{'time ratio':>12}{'operations':>12}{'peak MiB':>10}{'ratio':>8}")
    for name in OBJECTIVES:
        median = statistics.median(seconds[name])
        ratio, memory = median / statistics.median(seconds[base]), peaks[name] / peaks[base]
        work = flops[name] / flops[base]
        print(f"{name:32}{1000 * median:>10.0f}{ratio:>12.2f}{work:>12.2f}{peaks[name]:>10.0f}{memory:>8.2f}")


def compare_memory() -> None:
    """The teacher shares the student's base and adds three small modules; the average is a float32 copy of what is
    trained."""
    model = make_model()
    average = PowerEMA(model.trainable())
    teacher = sum(p.nbytes for p in model.latent_modules.parameters())
    everything = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    averaged = sum(tensor.nbytes for tensor in average.average.values())

    paper = settings_of("variance reduced", lora={"rank": 256}, resources={"use_gpu": True, "zero_stage": 0})
    parts = static_memory(paper, plan(paper).values)
    big_teacher, big_average = parts["original first and last layers"], parts["moving average"]
    rows = {
        f"the toy, float32, LoRA of rank {RANK}: its tensors": (everything - teacher, teacher, averaged),
        "FLUX.2 klein 9B, bfloat16, rank 256: by shapes": (
            parts["base weights"] + parts["trained values"],
            big_teacher,
            big_average,
        ),
    }
    print(f"{'MiB of weights':52}{'student':>10}{'teacher':>9}{'average':>9}{'ratio':>8}")
    for name, (student, others, averages) in rows.items():
        ratio = (student + others + averages) / student
        numbers = f"{student / 2**20:>10,.1f}{others / 2**20:>9,.1f}{averages / 2**20:>9,.1f}"
        print(f"{name:52}{numbers}{ratio:>8.3f}, bar {MEMORY_BAR:.2f}")


def make_update(kind: str) -> Callable[[], None]:
    """Return a function that updates all trained values of the toy and their average."""
    parameters = make_model().trainable()
    generator = torch.Generator().manual_seed(0)
    for p in parameters.values():
        p.grad = torch.randn(p.shape, generator=generator)
    average = PowerEMA(parameters, start_step=1)
    groups = [{"params": list(parameters.values()), "lr": 1e-4}]
    if kind != "tensor by tensor":
        optimizer = make_optimizer(groups, Optim(), zero_stage=0, fused=kind == "as on a GPU")

        def update() -> None:
            optimizer.step()
            average.update(2)

        return update
    plain = torch.optim.AdamW(groups, foreach=False)

    def update_each() -> None:
        norm = torch.nn.utils.clip_grad_norm_(parameters.values(), 200.0)
        if math.isfinite(float(norm)):
            plain.step()
        with torch.no_grad():
            for name, p in parameters.items():
                average.average[name].lerp_(p, 1 - average.decay_at(2))

    return update_each


def compare_updates(rounds: int) -> None:
    updates = {kind: make_update(kind) for kind in ("tensor by tensor", "as on a processor", "as on a GPU")}
    seconds: dict[str, list[float]] = {kind: [] for kind in updates}
    for number in range(rounds + 1):
        for kind, update in updates.items():
            started = time.process_time()
            update()
            if number:  # the first round creates the optimizer's state
                seconds[kind].append(time.process_time() - started)
    print(f"{'update of the trained values':32}{'ms':>8}{'ratio':>8}{'operations':>12}{'values read':>13}")
    base = statistics.median(seconds["tensor by tensor"])
    for kind, update in updates.items():
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            update()
        # what an operation runs inside itself is not dispatched by the host; a GPU's fused kernel reads nothing
        events = [event for event in profile.events() if event.name.startswith("aten::")]
        names = [e.name for e in events if e.cpu_parent is None or not e.cpu_parent.name.startswith("aten::")]
        reads, dispatched = sum(name in ("aten::item", "aten::is_nonzero") for name in names), len(names)
        median = statistics.median(seconds[kind])
        print(f"{kind:32}{1000 * median:>8.1f}{median / base:>8.2f}{dispatched:>12}{reads:>13}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--checkpointing", action="store_true", help="compute blocks again in the backward pass")
    parser.add_argument("--parts", default="time,memory,update", help="which comparisons to make")
    parser.add_argument("--worker", choices=OBJECTIVES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args.worker, args.batch, args.checkpointing)
        return
    comparisons = {
        "time": lambda: compare_times(args.batch, args.steps, args.checkpointing),
        "memory": compare_memory,
        "update": lambda: compare_updates(args.steps),
    }
    if unknown := set(args.parts.split(",")) - set(comparisons):
        parser.error(f"--parts: {', '.join(sorted(unknown))}; known are {', '.join(comparisons)}")
    for part in args.parts.split(","):
        comparisons[part]()
        print()


if __name__ == "__main__":
    main()
