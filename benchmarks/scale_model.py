"""Model of the pipeline's time and cost at scale: data steps on many nodes, and the finetune on many GPUs.

Nothing here is measured. Inputs are marked as measured (`benchmarks/data.py` and `benchmarks/scale.py --measure`),
counted from shapes, or assumed. docs/scale.md describes the model and where it breaks.
"""

import heapq
import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from pipelines.train.finetune.config import FinetuneSettings
from pipelines.train.finetune.memory import SHARDED_FROM
from pipelines.train.finetune.plan import Plan, plan

GB, HOUR = 1e9, 3600.0


@dataclass(frozen=True)
class Work:
    """One data step."""

    name: str
    seconds_per_item: float
    """On one worker: a core, or a GPU"""
    uses_gpu: bool
    items_per_task: int
    """Images per task, the unit that is lost and repeated"""
    read_bytes: float
    """Bytes per image from the store"""
    written_bytes: float
    """Bytes per image to the store, in all passes"""
    artifact_bytes: float
    """Bytes per image of the finished artifact, which the driver reads back and hashes"""
    driver_seconds: float = 0.0
    """Seconds per image in the driver, while the workers wait"""
    most_items: float = math.inf
    """Images that the step reads at most"""
    needs: tuple[str, ...] = ()


STEPS = (
    # measured: rate and bytes; the driver compared 3 million hashes in 14 s
    Work("curate", 1 / 12.5, False, 10_000, 0.29e6, 2 * 0.86e6, 0.86e6, 14 / 3e6),
    Work("color_stats", 1 / 21.25, False, 1024, 0.86e6, 0, 0, needs=("curate",)),
    Work("basis", 1 / 34.25, False, 1024, 0.86e6, 0, 0, most_items=100_000, needs=("color_stats",)),
    # from operations at 300 TFLOP/s: 28 TFLOP to read an image, and as long again to write 200 tokens
    Work("caption", 2 * 28 / 300, True, 1024, 0.86e6, 1e3, 1e3, needs=("curate",)),
    # 4.9 TFLOP for the latents; captions are encoded during training
    Work("encode", 4.9 / 300, True, 1024, 0.86e6, 0.88e6, 0.88e6, needs=("caption",)),
)


@dataclass(frozen=True)
class Cluster:
    """Nodes, the store that they share, and what goes wrong. The defaults are assumed unless marked."""

    nodes: int
    cores: int = 32
    """Per node"""
    gpus: int = 8
    """Per node; steps without a GPU leave them idle"""
    node_gb_per_second: float = 3.0
    """Network of a node, about 25 Gbit/s"""
    store_gb_per_second: float = 100.0
    """All nodes together"""
    hash_gb_per_second: float = 1.3
    """SHA-256 on one core (measured); the driver's threads use its cores"""
    seconds_per_task: float = 0.0
    """Time of the driver per task (measured with empty tasks)"""
    start_seconds: float = 60.0
    """Until a step's workers have started and loaded their model"""
    straggler_rate: float = 0.01
    """Share of tasks that are slow"""
    straggler_factor: float = 3.0
    losses_per_node_hour: float = 0.01
    """Preemptions and failures"""
    restart_seconds: float = 120.0
    """Until a lost node is replaced"""


class StepTime(NamedTuple):
    """Modelled times of one step, in seconds."""

    start: float
    workers: float
    """Makespan of the tasks, with dispatch, stragglers and losses"""
    store: float
    """All bytes at the bandwidth of nodes and store, which overlaps with the work"""
    driver: float
    """Serial work of the driver: hashing the artifact, comparing the images' hashes"""

    @property
    def total(self) -> float:
        """Return the duration of the step."""
        return self.start + max(self.workers, self.store) + self.driver


def schedule(tasks: int, workers: int, seconds: float, cluster: Cluster, seed: int = 0) -> float:
    """Return the makespan of equal tasks that idle workers take in order, simulated.

    Args:
        tasks: Number of tasks.
        workers: Number of workers.
        seconds: Duration of a task without stragglers and losses.
        cluster: Rates of stragglers and losses, and the driver's time per task.
        seed: Seed of the random numbers.
    """
    generator = np.random.default_rng(seed)
    durations = seconds * np.where(generator.random(tasks) < cluster.straggler_rate, cluster.straggler_factor, 1.0)
    free = [0.0] * min(workers, tasks)
    for number, duration in enumerate(durations.tolist()):
        begin = max(heapq.heappop(free), (number + 1) * cluster.seconds_per_task)
        if cluster.losses_per_node_hour:
            mean = HOUR / cluster.losses_per_node_hour
            while (lost := generator.exponential(mean)) < duration:  # the task starts again on the replaced node
                begin += lost + cluster.restart_seconds
        heapq.heappush(free, begin + duration)
    return max(free, default=0.0)


def step_time(work: Work, images: float, cluster: Cluster, seed: int = 0) -> StepTime:
    """Return the modelled time of a data step."""
    items = min(images, work.most_items)
    per_task = min(work.items_per_task, items)
    workers = cluster.nodes * (cluster.gpus if work.uses_gpu else cluster.cores)
    tasks = math.ceil(items / per_task)
    bandwidth = min(cluster.nodes * cluster.node_gb_per_second, cluster.store_gb_per_second) * GB
    of_driver = min(cluster.node_gb_per_second, cluster.store_gb_per_second, cluster.cores * cluster.hash_gb_per_second)
    return StepTime(
        cluster.start_seconds,
        schedule(tasks, workers, items / tasks * work.seconds_per_item, cluster, seed),
        items * (work.read_bytes + work.written_bytes) / bandwidth,
        items * (work.artifact_bytes / (of_driver * GB) + work.driver_seconds),
    )


def pipeline_time(images: float, cluster: Cluster, seed: int = 0) -> tuple[dict[str, StepTime], float]:
    """Return each data step's time, and the length of the critical path: the graph's branches run at the same time."""
    times = {work.name: step_time(work, images, cluster, seed) for work in STEPS}
    ends: dict[str, float] = {}
    for work in STEPS:
        ends[work.name] = max((ends[need] for need in work.needs), default=0.0) + times[work.name].total
    return times, max(ends.values())


@dataclass(frozen=True)
class Accelerators:
    """GPUs of a finetune. The defaults are an H100's data sheet, or assumed where marked."""

    count: int
    tflops: float = 989.0
    gib: float = 79.6
    spare_gib: float = 6.0
    """Assumed: CUDA context, workspaces, fragmentation"""
    efficiency: float = 0.45
    """Assumed: share of the peak that the executed operations reach"""
    per_node: int = 8
    node_gb_per_second: float = 450.0
    """NVLink, one direction"""
    network_gb_per_second: float = 50.0
    """Assumed: 400 Gbit/s per GPU between nodes"""
    straggler_rate: float = 0.001
    """Assumed: share of a GPU's steps that are slow; all others wait for it"""
    straggler_factor: float = 1.5
    losses_per_node_hour: float = 0.01
    restart_seconds: float = 300.0
    """Assumed: until the training has resumed from its checkpoint"""


class Finetune(NamedTuple):
    """One choice of settings, and its modelled time."""

    zero_stage: int
    checkpointing: bool
    micro_batch: int
    gib: float
    compute: float
    """Seconds of a step in operations"""
    exchange: float
    """Seconds of a step in collectives, which are assumed not to overlap"""
    hours: float
    """Of the whole training, with stragglers and losses"""


def finetune_settings(base: str, gpus: int, zero_stage: int, checkpointing: bool, micro_batch: int) -> FinetuneSettings:
    """Return the paper's training of a base whose folder need not exist."""
    resources = {
        "workers": gpus, "use_gpu": True, "gpu_memory": 80, "peak_tflops": Accelerators.tflops,
        "zero_stage": zero_stage, "gradient_checkpointing": checkpointing, "micro_batch": micro_batch,
    }  # fmt: skip
    inputs = dict.fromkeys(("curated", "encoded", "basis"), "not made yet")
    return FinetuneSettings.model_validate({**inputs, "base": base, "resources": resources})


def exchange_seconds(planned: Plan, gpus: Accelerators) -> float:
    """Return the seconds that a step's collectives take on rings.

    Without ZeRO and in stages 1 and 2 every step moves 2 (n - 1) / n times the gradients through each GPU: an
    all-reduce, or a reduce-scatter and an all-gather. Stage 2 reduces the gradients of each micro-batch. Stage 3 also
    gathers all weights for each forward and backward pass of each micro-batch: the student's two and the teacher's one,
    and one more with gradient checkpointing.
    """
    if gpus.count == 1:
        return 0.0
    values, resources = planned.values, planned.settings.resources
    passes = planned.slots // planned.micro_batch
    ring = (gpus.count - 1) / gpus.count
    trained = 4.0 * values.total_trained
    stage = resources.zero_stage
    reduced = trained * (passes if stage >= SHARDED_FROM["gradients"] else 1)
    moved = ring * (reduced + (trained if stage < SHARDED_FROM["weights"] else 0))
    if stage >= SHARDED_FROM["weights"]:
        gathered = 3 + resources.gradient_checkpointing
        moved += ring * passes * gathered * (2 * (values.base + values.original) + trained)
    bandwidth = gpus.node_gb_per_second if gpus.count <= gpus.per_node else gpus.network_gb_per_second
    return moved / (bandwidth * GB)


def finetune_time(settings: FinetuneSettings, gpus: Accelerators) -> Finetune:
    """Return the modelled time of a finetune."""
    planned = plan(settings)
    resources, optim = settings.resources, settings.optim
    compute = planned.slots * planned.flops.executed / (1e12 * gpus.tflops * gpus.efficiency)
    slow = 1 - (1 - gpus.straggler_rate) ** gpus.count
    exchange = exchange_seconds(planned, gpus)
    step = compute * (1 + slow * (gpus.straggler_factor - 1)) + exchange
    hours = optim.steps * step / HOUR
    nodes = math.ceil(gpus.count / gpus.per_node)
    lost = settings.checkpoints.every * step / 2 + gpus.restart_seconds  # half of the steps since a checkpoint
    hours *= 1 + gpus.losses_per_node_hour * nodes * lost / HOUR
    gib = sum(planned.memory.values()) / 2**30
    return Finetune(
        resources.zero_stage, resources.gradient_checkpointing, planned.micro_batch, gib, compute, exchange, hours
    )


def choices(base: str, gpus: Accelerators) -> list[Finetune]:
    """Return every choice of ZeRO stage, checkpointing and micro-batch that fits, the fastest first."""
    found = []
    for stage in range(4):
        for checkpointing in (False, True):
            for micro_batch in (1, 2, 4, 8):
                one = finetune_time(finetune_settings(base, gpus.count, stage, checkpointing, micro_batch), gpus)
                if one.gib <= gpus.gib - gpus.spare_gib:
                    found.append(one)
    return sorted(found, key=lambda one: one.hours)


def ideal(cluster: Cluster) -> Cluster:
    """Return the cluster without overheads: no start, dispatch, stragglers or losses, and an unlimited store."""
    return replace(
        cluster, node_gb_per_second=math.inf, store_gb_per_second=math.inf, hash_gb_per_second=math.inf,
        seconds_per_task=0.0, start_seconds=0.0, straggler_rate=0.0, losses_per_node_hour=0.0,
    )  # fmt: skip
