"""Modelled time and cost of the pipeline at scale, as tables and figures; see docs/scale.md.

    python benchmarks/scale.py [--out docs] [--measure] [--tasks 100000]

Nothing but the time per task of Ray is measured: --measure times empty tasks on a local Ray and prints the result,
whose value on the machine of docs/scale.md is TASK_SECONDS. --out writes the figures scale_data.png and
scale_finetune.png.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1])]

from scale_model import (  # noqa: E402
    STEPS,
    Accelerators,
    Cluster,
    Finetune,
    choices,
    finetune_settings,
    finetune_time,
    ideal,
    pipeline_time,
)

from pipelines.core.config import load_config  # noqa: E402
from pipelines.core.text_table import format_table  # noqa: E402
from pipelines.train.finetune.plan import plan  # noqa: E402
from pipelines.train.pretrain.config import PretrainSettings  # noqa: E402
from pipelines.train.pretrain.plan import plan as pretrain_plan  # noqa: E402
from pipelines.viz.figures import new_figure  # noqa: E402

TASK_SECONDS = 369e-6
"""Processor time of the driver per empty task, measured by --measure"""
IMAGES = {"3M": 3e6, "30M": 30e6, "300M": 300e6}
NODES = (1, 3, 10, 30, 100, 300, 1000)
GPUS = (8, 16, 32, 64, 128, 256)
BASES = {"4B": "FLUX.2-klein-base-4B", "9B": "FLUX.2-klein-base-9B", "20B": "Qwen-Image"}
CPU_NODE_HOUR, GPU_HOUR = 1.5, 2.5
"""Prices in dollars, assumed: a node of 32 cores, and a GPU with its share of a node"""
PAPER_GPU_HOURS, SCRATCH_GPU_HOURS = 1100, 1750
"""The paper's, on H100"""
HOUR = 3600


def measure_tasks(count: int) -> tuple[float, float]:
    """Return the seconds per empty task until all are done, and those that the driver's processor works on one.

    The second, which other work on the machine does not change, is what limits the dispatch on a cluster, where
    the tasks run elsewhere.
    """
    import ray

    from pipelines.core.config import RunSettings
    from pipelines.core.step import start_ray, stop_ray

    @ray.remote
    def empty() -> None:
        return None

    start_ray(RunSettings())
    ray.get([empty.remote() for _ in range(100)])  # starts the workers
    started, worked = time.monotonic(), time.process_time()
    ray.get([empty.remote() for _ in range(count)])
    seconds = (time.monotonic() - started) / count, (time.process_time() - worked) / count
    stop_ray()
    return seconds


def cost(images: float, nodes: int) -> float:
    """Return the dollars of the data steps: each on nodes of its kind, all paid for from its start to its end."""
    times, _ = pipeline_time(images, Cluster(nodes, seconds_per_task=TASK_SECONDS))
    price = {work.name: 8 * GPU_HOUR if work.uses_gpu else CPU_NODE_HOUR for work in STEPS}
    return sum(nodes * time.total / HOUR * price[name] for name, time in times.items())


def data_rows() -> list[tuple[str, ...]]:
    """Return the table of the data steps."""
    rows: list[tuple[str, ...]] = [
        (
            "images",
            "nodes",
            *(work.name for work in STEPS),
            "critical path, h",
            "ideal, h",
            "dollars",
            "bound of curate",
        )
    ]
    for label, images in IMAGES.items():
        for nodes in NODES:
            cluster = Cluster(nodes, seconds_per_task=TASK_SECONDS)
            times, path = pipeline_time(images, cluster)
            _, best = pipeline_time(images, ideal(cluster))
            curate = times["curate"]
            parts = {"workers": curate.workers, "store": curate.store, "driver": curate.driver}
            hours = (f"{time.total / HOUR:.2f}" for time in times.values())
            bound = max(parts, key=lambda name: parts[name])
            numbers = (f"{path / HOUR:.2f}", f"{best / HOUR:.2f}", f"{cost(images, nodes):,.0f}", bound)
            rows.append((label, str(nodes), *hours, *numbers))
    return rows


def fastest() -> dict[str, dict[int, Finetune | None]]:
    """Return the fastest settings that fit, {base: {GPUs: choice}}; None where none fits."""
    found = {}
    for label, base in BASES.items():
        found[label] = {count: next(iter(choices(base, Accelerators(count))), None) for count in GPUS}
    return found


def finetune_rows(found: dict[str, dict[int, Finetune | None]]) -> list[tuple[str, ...]]:
    """Return the table of the fastest settings."""
    rows: list[tuple[str, ...]] = [
        ("base", "GPUs", "ZeRO", "checkpointing", "micro-batch", "GiB", "s per step", "exchange", "hours", "GPU hours",
         "dollars")
    ]  # fmt: skip
    for label, by_count in found.items():
        for count, one in by_count.items():
            if one is None:
                rows.append((label, str(count), "nothing fits", *[""] * 8))
                continue
            step = one.compute + one.exchange
            rows.append((
                label, str(count), str(one.zero_stage), "yes" if one.checkpointing else "no", str(one.micro_batch),
                f"{one.gib:.0f}", f"{step:.2f}", f"{one.exchange / step:.0%}",
                f"{one.hours:.1f}", f"{count * one.hours:,.0f}", f"{count * one.hours * GPU_HOUR:,.0f}",
            ))  # fmt: skip
    return rows


def zero_rows(gpus: int = 32) -> list[tuple[str, ...]]:
    """Return the table of every ZeRO stage with and without checkpointing, one image at once."""
    rows: list[tuple[str, ...]] = [("base", "ZeRO", "checkpointing", "GiB", "s per step", "of it exchange")]
    for label, base in BASES.items():
        for stage in range(4):
            for checkpointing in (False, True):
                one = finetune_time(finetune_settings(base, gpus, stage, checkpointing, 1), Accelerators(gpus))
                shown = (f"{one.gib:.1f}", f"{one.compute + one.exchange:.2f}", f"{one.exchange:.2f}")
                rows.append((label, str(stage), "yes" if checkpointing else "no", *shown))
    return rows


def published_rows() -> list[tuple[str, ...]]:
    """Return published figures beside those of the model."""
    papers = finetune_time(finetune_settings(BASES["9B"], 32, 0, True, 4), Accelerators(32))
    hours = 32 * papers.hours
    lora = finetune_settings(BASES["4B"], 1, 0, True, 1).model_dump()
    lora |= {"model": "latent", "loss": {"kind": "flow_matching"}, "lora": {"rank": 16}}
    small = plan(type(finetune_settings(BASES["4B"], 1, 0, True, 1)).model_validate(lora))
    gib = sum(small.memory.values()) / 2**30
    config = str(Path(__file__).resolve().parents[1] / "jobs/configs/pretrain/imagenet_h16_r8.yaml")
    given = ["curated=none", "resources.gpu_memory=80", "resources.peak_tflops=989"]
    scratch = pretrain_plan(load_config(PretrainSettings, config, given))[0]["worker_hours"]
    efficiency = Accelerators(1).efficiency
    return [
        ("figure", "published", "model", "note"),
        ("GPU hours, 9B, 15,000 steps of 256", f"{PAPER_GPU_HOURS:,}", f"{hours:,.0f}",
         f"agree at an efficiency of {efficiency * hours / PAPER_GPU_HOURS:.2f}"),
        ("GPU hours, JiT-H/16 from scratch, 600 epochs", f"{SCRATCH_GPU_HOURS:,}", f"{scratch:,.0f}",
         f"agree at an efficiency of {efficiency * scratch / SCRATCH_GPU_HOURS:.2f}"),
        ("4B, LoRA of rank 16, one image: GiB", "13, 24", f"{gib:.1f}", "without encoders and CUDA's own memory"),
    ]  # fmt: skip


def data_figure() -> Any:
    """Plot time and cost of the data steps by nodes."""
    figure = new_figure(figsize=(13, 4.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for color, (label, images) in enumerate(IMAGES.items()):
        clusters = [Cluster(nodes, seconds_per_task=TASK_SECONDS) for nodes in NODES]
        paths = [pipeline_time(images, cluster)[1] / HOUR for cluster in clusters]
        best = [pipeline_time(images, ideal(cluster))[1] / HOUR for cluster in clusters]
        left.loglog(NODES, paths, "o-", color=f"C{color}", label=f"{label} images")
        left.loglog(NODES, best, ":", color=f"C{color}")
        right.loglog(NODES, [cost(images, nodes) for nodes in NODES], "o-", color=f"C{color}", label=f"{label} images")
    left.set(xlabel="nodes", ylabel="hours", title="Critical path of the data steps (dotted: ideal)")
    left.legend()
    right.set(xlabel="nodes", ylabel="dollars at assumed prices", title="Cost, all nodes of a step paid for")
    right.legend()
    runs = [pipeline_time(IMAGES["30M"], Cluster(nodes, seconds_per_task=TASK_SECONDS))[0] for nodes in NODES]
    totals = [sum(time.total for time in run.values()) for run in runs]
    parts = {
        "start": [sum(time.start for time in run.values()) for run in runs],
        "workers or store": [sum(max(time.workers, time.store) for time in run.values()) for run in runs],
        "driver": [sum(time.driver for time in run.values()) for run in runs],
    }
    bottom = [0.0] * len(NODES)
    places = range(len(NODES))
    for label, seconds in parts.items():
        shares = [part / total for part, total in zip(seconds, totals, strict=True)]
        middle.bar(places, shares, bottom=bottom, label=label)
        bottom = [below + share for below, share in zip(bottom, shares, strict=True)]
    middle.set_xticks(places, [str(nodes) for nodes in NODES])
    middle.set(xlabel="nodes", ylabel="share of all steps' time", title="Where the time goes, 30M images", ylim=(0, 1))
    middle.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3)
    return figure


def finetune_figure(found: dict[str, dict[int, Finetune | None]]) -> Any:
    """Plot hours and GPU hours of the finetune by GPUs."""
    figure = new_figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for color, (label, by_count) in enumerate(found.items()):
        fits = {count: one for count, one in by_count.items() if one}
        left.loglog(list(fits), [one.hours for one in fits.values()], "o-", color=f"C{color}", label=label)
        first, one = next(iter(fits.items()))
        left.loglog(list(fits), [one.hours * first / count for count in fits], ":", color=f"C{color}")
        right.semilogx(
            list(fits), [count * one.hours for count, one in fits.items()], "o-", color=f"C{color}", label=label
        )
    right.axhline(PAPER_GPU_HOURS, color="C1", linestyle="--", label="9B, the paper's 1,100")
    left.set(xlabel="GPUs", ylabel="hours", title="15,000 steps of 256 images (dotted: linear)")
    right.set(xlabel="GPUs", ylabel="GPU hours", title="Total", ylim=(0, None))
    for axes in (left, right):
        axes.set_xticks(GPUS, [str(count) for count in GPUS])
        axes.minorticks_off()
        axes.legend(loc="lower left", ncols=2)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="folder for the figures")
    parser.add_argument(
        "--measure", action="store_true", help="time empty tasks on a local Ray, and print nothing else"
    )
    parser.add_argument("--tasks", type=int, default=100_000)
    arguments = parser.parse_args()
    if arguments.measure:
        elapsed, worked = measure_tasks(arguments.tasks)
        print(
            f"{arguments.tasks:,} empty tasks: {1e6 * elapsed:.0f} microseconds each, {1e6 * worked:.0f} of the driver"
        )
        return
    found = fastest()
    for rows in (data_rows(), finetune_rows(found), zero_rows(), published_rows()):
        print(f"{format_table(rows)}\n")
    if arguments.out:
        for name, figure in (("scale_data", data_figure()), ("scale_finetune", finetune_figure(found))):
            figure.savefig(Path(arguments.out) / f"{name}.png", dpi=110)


if __name__ == "__main__":
    main()
