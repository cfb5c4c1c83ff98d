"""Settings common to all trainings."""

from collections.abc import Mapping
from importlib.machinery import PathFinder
from typing import Any, Literal

from pydantic import Field, model_validator

from pipelines.core.config import ConfigError, Settings, StepSettings, added


class Optim(Settings):
    """Optimizer, learning rate schedule and gradient clipping."""

    optimizer: Literal["adam", "adam8bit"] = "adam"
    """adam8bit keeps its moments in 8 bits (bitsandbytes), unsharded on every worker: it needs
    resources.zero_stage=0"""
    lr: float = Field(1e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(0.0, ge=0)
    batch: int = Field(256, ge=1)
    """Images per optimizer step, over all workers and accumulated micro-batches"""
    steps: int = Field(15_000, ge=1)
    warmup_steps: int = Field(100, ge=0)
    """Steps of linear warm-up, from 1 / warmup_steps of the learning rate to all of it"""
    warmup_ratio: float | None = added(None, gt=0, le=1)
    """Fraction of the learning rate at the first step; warm-up then ends at step warmup_steps + 1. The released weights
    were trained with 0.001. Empty: warm-up starts at 1 / warmup_steps"""
    cooldown_steps: int = Field(0, ge=0)
    """Last steps, over which the learning rate decays linearly to zero. The paper uses none; short runs benefit from
    it"""
    clip: float | None = Field(200.0, gt=0)
    """Maximum gradient norm; empty: no clipping"""
    clip_from: int = Field(100, ge=0)
    """First step at which gradients are clipped"""


def check_optimizer(optim: Optim) -> None:
    """Raise ConfigError if the optimizer's package is not installed."""
    if optim.optimizer == "adam8bit":
        check_bitsandbytes("optim.optimizer=adam8bit")


def check_bitsandbytes(setting: str) -> None:
    """Raise ConfigError, which begins with the setting, if bitsandbytes is not installed."""
    if not PathFinder.find_spec("bitsandbytes"):
        raise ConfigError(f"{setting}: needs bitsandbytes: pip install 'asymflow[gpu]'")


class Resources(Settings):
    """Hardware of the training. Another choice gives the same run up to rounding."""

    workers: int = Field(1, ge=1)
    cpus_per_worker: float = Field(1, gt=0)
    use_gpu: bool = False
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    """Of the frozen base and of matrix products; trained weights are float32. auto: bfloat16 on GPUs, float32
    elsewhere"""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """What DeepSpeed shards over the workers: 0 nothing, 1 optimizer state, 2 also gradients, 3 also weights"""
    micro_batch: int | None = Field(None, ge=1)
    """Images per worker and forward pass; empty: the worker's whole share of the batch"""
    gradient_checkpointing: bool = False
    """Recompute each block in the backward pass instead of keeping its activations"""
    compile: bool = False
    """torch.compile each block: minutes at the start, faster steps afterwards"""
    gpu_memory: float | None = Field(None, gt=0)
    """Memory in GiB of the GPU that the plan of --dry-run is made for; empty: this machine's GPU, else an H100"""
    peak_tflops: float | None = Field(None, gt=0)
    """Peak of one worker, for model FLOPs utilization (MFU); empty: known for common GPUs, else MFU is not logged"""
    wait_minutes: float = Field(30.0, gt=0)
    """Fail if the cluster has no room for the workers for this long"""
    max_failures: int = Field(3, ge=0)
    """Restarts after a worker is lost; preemptions are not counted"""

    @property
    def demand(self) -> dict[str, float]:
        """Return the resources of all workers together, by Ray's resource names."""
        return {"CPU": self.workers * self.cpus_per_worker, "GPU": self.workers if self.use_gpu else 0}


class Checkpoints(Settings):
    """When checkpoints are written, and which are kept."""

    every: int = Field(250, ge=1)
    """Steps between checkpoints; one more is written when the job is stopped"""
    keep_last: int = Field(2, ge=1)
    """Newest checkpoints to keep"""
    keep_every: int | None = Field(None, ge=1)
    """Also keep checkpoints whose step is a multiple of this"""


class Monitoring(Settings):
    """Limits of the training monitor: when to warn, to skip and to stop."""

    skips: int = Field(10, ge=1)
    """Stop after this many consecutive steps whose loss or gradient is not finite; each of them is skipped"""
    spike: float = Field(5.0, gt=1)
    """Warn about a loss of more than this many times the median of the last hundred"""
    hang_minutes: float = Field(30.0, gt=0)
    """A step that takes longer ends the worker, with the stack traces of its threads in the log"""
    stop_minutes: float = Field(5.0, gt=0)
    """A stopped job (SIGTERM, `ray job stop`) ends within this time, whether or not its last checkpoint could be
    written"""


class TrainSettings(StepSettings):
    """Base class of a training's settings."""

    seed: int = 0
    optim: Optim = Optim()
    shuffle_window: int = Field(64, ge=1)
    """Row groups (of 64 images) of one size that are read and shuffled together, distributed over the workers"""
    checkpoints: Checkpoints = Checkpoints()
    watch: Monitoring = Monitoring()
    resources: Resources = Resources()

    @property
    def validates_every(self) -> int | None:
        """Return the steps between validations; None without validation."""
        return None

    @model_validator(mode="after")
    def _can_be_sharded(self) -> "TrainSettings":
        stage = self.resources.zero_stage
        if self.optim.optimizer == "adam8bit" and stage:
            raise ValueError(
                f"optim.optimizer=adam8bit with resources.zero_stage={stage}: sharding cuts through the blocks of "
                "values that share a scale, and another number of workers could not read the state; use zero_stage=0 "
                "(its state is 2 bytes per trained value) or optimizer=adam"
            )
        return self


def config_to_load(config: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """Return a manifest's settings without the resources that it was trained on.

    ZeRO stage 0 is valid with every optimizer, so that every trained model can be loaded.
    """
    return {**config, "resources": {"zero_stage": 0}, **changes}
