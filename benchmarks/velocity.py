"""Recovery of the velocity (Eq. 17): with two projections, against the printed form with four.

    python benchmarks/velocity.py [--tokens N] [--device cpu|cuda]

Prints time, extra memory, the largest difference, and the ratio of the fast form's time to the bound given by this
machine's matrix products and copies. Memory on a CPU is the growth of the peak resident size, each form in a separate
process; on a GPU it is the allocator's peak.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402

from asymflow.parameterization import recover_u  # noqa: E402

BATCH, DIM, RANK, SCALE, FLOOR = 8, 768, 128, 0.83, 1e-4


def four_projections(u_a, x_t, sigma, A, s, sigma_floor):
    """Return Eq. 17 as printed: P and I - P each cost one product with A transposed and one with A."""
    sigma = sigma.view(-1, 1, 1)
    k = 1 / (s * (1 - sigma) + sigma)
    sigma = sigma.clamp_min(sigma_floor)
    inside = s * k * u_a + (1 - s * k) * x_t / sigma
    outside = (x_t + s * u_a) / sigma
    return inside @ A @ A.T + (outside - outside @ A @ A.T)


FORMS = {"four projections": four_projections, "recover_u": recover_u}


def inputs(tokens: int, device: str) -> tuple:
    generator = torch.Generator().manual_seed(0)
    A = torch.linalg.qr(torch.randn(DIM, RANK, generator=generator)).Q.contiguous()
    u_a, x_t = (torch.randn(BATCH, tokens, DIM, generator=generator) for _ in range(2))
    sigma = torch.linspace(0.05, 1, BATCH)
    return (*(t.to(device) for t in (u_a, x_t, sigma, A)), SCALE, FLOOR)


def seconds(call: Callable[[], object], device: str, repeats: int) -> float:
    """Return the median time of a call, after a warm-up call."""
    times = []
    for _ in range(repeats + 1):
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def peak_rss() -> int:
    """Return the peak resident size (Linux). Unlike getrusage's, it does not start at the parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def extra_bytes(form: str, tokens: int, device: str) -> int:
    """Return the peak memory that one call adds to its inputs, including its result."""
    arguments = inputs(tokens, device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        FORMS[form](*arguments)
        return torch.cuda.max_memory_allocated() - before
    before = peak_rss()
    FORMS[form](*arguments)
    return peak_rss() - before


def measure_in_process(form: str, tokens: int, device: str) -> int:
    command = [sys.executable, __file__, "--tokens", str(tokens), "--device", device, "--memory-of", form]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--memory-of", choices=list(FORMS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    if options.memory_of:
        print(extra_bytes(options.memory_of, options.tokens, options.device))
        return

    arguments = inputs(options.tokens, options.device)
    u_a, x_t, _, A = arguments[:4]
    results = [form(*arguments) for form in FORMS.values()]
    difference = float((results[0] - results[1]).abs().max() / results[0].abs().max())
    del results
    times = {
        name: seconds(lambda form=form: form(*arguments), options.device, options.repeats)
        for name, form in FORMS.items()
    }
    memory = {name: measure_in_process(name, options.tokens, options.device) for name in FORMS}

    # The bound: two thin products at the speed that this machine reaches on them, and the least traffic there
    # can be, two tensors read and one written, at the speed of a copy (one read, one written). They may
    # overlap.
    coordinates = x_t @ A
    products = seconds(lambda: x_t @ A, options.device, options.repeats)
    products += seconds(lambda: coordinates @ A.T, options.device, options.repeats)
    target = torch.empty_like(x_t)
    copy = seconds(lambda: target.copy_(x_t), options.device, options.repeats)
    size = x_t.numel() * x_t.element_size()
    gflop = 4 * x_t.shape[0] * x_t.shape[1] * DIM * RANK / 1e9
    bound = max(products, 1.5 * copy)

    print(f"u_A, x_t {tuple(u_a.shape)} float32, A {tuple(A.shape)}, {options.device}, ", end="")
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{'form':<18}{'ms':>9}{'time':>8}{'extra MiB':>11}{'memory':>9}")
    for name in FORMS:
        row = f"{name:<18}{times[name] * 1e3:>9.1f}{times[name] / times['recover_u']:>7.2f}x"
        print(row + f"{memory[name] / 2**20:>11.0f}{memory[name] / max(memory['recover_u'], 1):>8.2f}x")
    print(f"largest difference, relative to the largest value: {difference:.1e}")
    print(f"two products {products * 1e3:.1f} ms ({gflop / products:.0f} GFLOP/s); ", end="")
    print(f"least traffic {1.5 * copy * 1e3:.1f} ms ({2 * size / copy / 1e9:.1f} GB/s)")
    print(f"recover_u takes {times['recover_u'] / bound:.2f} times the larger of the two, ", end="")
    print(f"{times['recover_u'] / (products + 1.5 * copy):.2f} times their sum")


if __name__ == "__main__":
    main()
