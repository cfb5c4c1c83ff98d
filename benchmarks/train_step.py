"""A variance-reduced training step against a plain flow-matching step of the toy model: time and peak memory.

    python benchmarks/train_step.py [--batch 48] [--steps 10]

Each objective runs in a process of its own, so that its peak memory is its own; times are taken in turns, round by
round, and their medians compared, because machines are noisy.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import torch

from asymflow.models.flux2 import PixelFlux2
from asymflow.oklab import RELEASED
from asymflow.subspace import Subspace
from pipelines.finetune.batches import Batch
from pipelines.finetune.config import Loss, Perceptual
from pipelines.finetune.objective import Objective
from pipelines.toy.flow import new_transformer

OBJECTIVES = {
    "flow matching": Loss(kind="flow_matching"),
    "variance reduced": Loss(perceptual=None),
    "variance reduced + perceptual": Loss(perceptual=Perceptual(net="squeeze", weights="random")),
}
TEXT_TOKENS = 16


def make_step(name: str, batch: int):
    """A function that takes one optimizer step on random data of the demo's shapes."""
    torch.manual_seed(0)
    A = torch.linalg.qr(torch.randn(768, 128)).Q
    model = PixelFlux2.from_latent(new_transformer(96), Subspace(A, 2.4, "channel_first", RELEASED, {}))
    model.add_lora(rank=64)
    objective = Objective(model.train(), OBJECTIVES[name])
    optimizer = torch.optim.AdamW(model.trainable().values(), lr=1e-4)
    data = Batch(
        images=torch.rand(batch, 3, 64, 64) * 2 - 1,
        z_0=torch.randn(batch, 16, 128),
        text=torch.randn(batch, TEXT_TOKENS, 96),
        text_mask=torch.ones(batch, TEXT_TOKENS).bool(),
        noise=torch.randn(batch, 3, 64, 64),
        sigma=torch.rand(batch),
    )

    def step() -> None:
        loss, _ = objective(data)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def worker(name: str, batch: int) -> None:
    """Answer each line on stdin with the time of one step and the peak memory so far."""
    step = make_step(name, batch)
    step()
    for _ in sys.stdin:
        started = time.perf_counter()
        step()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps([time.perf_counter() - started, peak]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--worker", choices=OBJECTIVES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args.worker, args.batch)
        return
    processes = {}
    for name in OBJECTIVES:
        command = [sys.executable, __file__, "--worker", name, "--batch", str(args.batch)]
        processes[name] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    seconds: dict[str, list[float]] = {name: [] for name in OBJECTIVES}
    peaks: dict[str, float] = {}
    for _ in range(args.steps):
        for name, process in processes.items():
            assert process.stdin and process.stdout
            process.stdin.write("step\n")
            process.stdin.flush()
            elapsed, peaks[name] = json.loads(process.stdout.readline())
            seconds[name].append(elapsed)
    for process in processes.values():
        process.communicate()
    base = next(iter(OBJECTIVES))
    print(f"batch {args.batch}, {args.steps} steps each, {torch.get_num_threads()} threads")
    print(f"{'objective':32}{'ms a step':>10}{'time ratio':>12}{'peak MiB':>10}{'ratio':>8}")
    for name in OBJECTIVES:
        median = statistics.median(seconds[name])
        ratio, memory = median / statistics.median(seconds[base]), peaks[name] / peaks[base]
        print(f"{name:32}{1000 * median:>10.0f}{ratio:>12.2f}{peaks[name]:>10.0f}{memory:>8.2f}")


if __name__ == "__main__":
    main()
