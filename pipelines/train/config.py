"""Settings that all trainings have."""

from collections.abc import Mapping
from importlib.machinery import PathFinder
from typing import Any, Literal

from pydantic import Field, model_validator

from pipelines.core.config import ConfigError, Settings, StepSettings, added


class Optim(Settings):
    optimizer: Literal["adam", "adam8bit"] = "adam"
    """adam8bit keeps its moments in 8 bits (bitsandbytes), whole on every worker: it needs resources.zero_stage=0"""
    lr: float = Field(1e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(0.0, ge=0)
    batch: int = Field(256, ge=1)
    """Pictures a step, over all workers and accumulated micro-batches"""
    steps: int = Field(15_000, ge=1)
    warmup_steps: int = Field(100, ge=0)
    """Steps over which the rates rise, step / warmup_steps of them at each"""
    warmup_ratio: float | None = added(None, gt=0, le=1)
    """Share of the rates at the first step, from which they rise so that step warmup_steps + 1 is the first with the
    whole: as the released weights were trained, with 0.001. Empty: they rise from 1 / warmup_steps"""
    cooldown_steps: int = Field(0, ge=0)
    """Last steps over which the rates fall to zero; the paper keeps them, short runs end cleaner with it"""
    clip: float | None = Field(200.0, gt=0)
    """Limit of the gradient norm; empty: none"""
    clip_from: int = Field(100, ge=0)
    """First step at which it holds"""


def check_optimizer(optim: Optim) -> None:
    """Raise ConfigError where the optimizer's package is not installed."""
    if optim.optimizer == "adam8bit" and not PathFinder.find_spec("bitsandbytes"):
        raise ConfigError("optim.optimizer=adam8bit: needs bitsandbytes: pip install 'asymflow[gpu]'")


class Resources(Settings):
    """On what the training runs. Another choice gives the same run, but for rounding."""

    workers: int = Field(1, ge=1)
    cpus_per_worker: float = Field(1, gt=0)
    use_gpu: bool = False
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    """Of the frozen base and of the products; what is trained is float32. auto: bfloat16 on GPUs, float32 elsewhere"""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """What DeepSpeed shards over the workers: nothing, optimizer state, gradients too, weights too"""
    micro_batch: int | None = Field(None, ge=1)
    """Pictures a worker holds at once; empty: its whole share of the batch"""
    gradient_checkpointing: bool = False
    """Compute each block again in the backward pass instead of keeping its activations"""
    compile: bool = False
    """torch.compile each block: minutes at the start, faster steps after"""
    peak_tflops: float | None = Field(None, gt=0)
    """Of one worker, for the share of it that is used (MFU); empty: known for common GPUs, else not logged"""
    wait_minutes: float = Field(30.0, gt=0)
    """Give up where the cluster has had no room for the workers for so long"""
    max_failures: int = Field(3, ge=0)
    """Restarts after a worker is lost; those that a preemption takes are not counted"""


class Checkpoints(Settings):
    every: int = Field(250, ge=1)
    """Steps between checkpoints; one more is written when the job is asked to stop"""
    keep_last: int = Field(2, ge=1)
    keep_every: int | None = Field(None, ge=1)
    """Keep those of multiples of this step for good"""


class Watch(Settings):
    """When to skip, to warn and to give up."""

    skips: int = Field(10, ge=1)
    """Stop after so many steps in a row whose loss or gradient is not finite; each of them is skipped"""
    spike: float = Field(5.0, gt=1)
    """Log a loss that is so many times the median of the last hundred"""
    hang_minutes: float = Field(30.0, gt=0)
    """A step that takes longer ends the worker, with the stacks of its threads in the log"""
    stop_minutes: float = Field(5.0, gt=0)
    """A job that is asked to stop (SIGTERM, `ray job stop`) ends within this time, whether the store takes its last
    checkpoint or not"""


class TrainSettings(StepSettings):
    """Base of a training's settings. Those that a step has besides are its own."""

    seed: int = 0
    optim: Optim = Optim()
    shuffle_window: int = Field(64, ge=1)
    """Row groups (of 64 pictures) of one size that are read and shuffled together, shared out over the workers"""
    checkpoints: Checkpoints = Checkpoints()
    watch: Watch = Watch()
    resources: Resources = Resources()

    @property
    def validates_every(self) -> int | None:
        """Steps between validations; None: there are none."""
        return None

    @model_validator(mode="after")
    def _can_be_sharded(self) -> "TrainSettings":
        stage = self.resources.zero_stage
        if self.optim.optimizer == "adam8bit" and stage:
            raise ValueError(
                f"optim.optimizer=adam8bit with resources.zero_stage={stage}: sharding cuts through the blocks of "
                "values that share a scale, and no other number of workers could read the state; take zero_stage=0 "
                "(its state is 2 bytes a trained value) or optimizer=adam"
            )
        return self


def config_to_load(config: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """Return a manifest's settings without the resources that it was trained on: ZeRO stage 0 goes with every
    optimizer, so that what was trained can always be loaded."""
    return {**config, "resources": {"zero_stage": 0}, **changes}
