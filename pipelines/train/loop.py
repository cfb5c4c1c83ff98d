"""Training loop of each worker: resume from the newest checkpoint, train to the end or until a stop request."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import ray.train
import torch
import torch.distributed as dist
from safetensors.torch import save
from torch import Tensor

from pipelines.core import storage
from pipelines.core.progress import open_worker_bar
from pipelines.core.tracking import Tracker
from pipelines.train.channel import Channel
from pipelines.train.checkpoint import folder_of, load_newest
from pipelines.train.checkpointing import Checkpointer
from pipelines.train.engine import (
    backward_and_step,
    create_optimizer_state,
    gradient_norm,
    make_engine,
    set_clip,
    set_learning_rates,
    was_skipped,
)
from pipelines.train.history import summary_of
from pipelines.train.metrics_log import AVERAGE, METRICS_LOG, TRAINABLE, MetricsLog
from pipelines.train.monitoring import GiveUp, StepMonitor, Watchdog
from pipelines.train.run_lease import TERMINATED, LeaseMonitor, RunLease, WorkerSignal
from pipelines.train.sample_order import slots_per_worker
from pipelines.train.state import TrainableState, copy_to_cpu
from pipelines.train.stopping import describe_checkpoint
from pipelines.train.task import Batch, MakeTask, Tokens
from pipelines.train.tracking_log import TrackingLog, read_unsent

LOGGER = logging.getLogger(__name__)
PREEMPTION_CHECK_SECONDS = 10.0
"""Interval of preemption checks, each a barrier of all workers"""
FINISH_SECONDS = 600.0
"""A finished training retries writing its result for this long"""
CLOSE_SECONDS, TRACKING_SECONDS = 60.0, 20.0
"""How long an ending worker waits for its last checkpoint, and for MLflow"""
STOP_SHARE = 0.7
"""Share of the stop time for the last checkpoint; the rest is for the step before it and the driver"""


class WorkerTerminated(RuntimeError):
    """This worker's process was terminated; Ray restarts the workers from the last complete checkpoint."""


def train_loop(make_task: MakeTask, config: dict[str, Any]) -> dict[str, Any]:
    """Run a worker's training; the entry point of Ray Train.

    Args:
        make_task: class of the task.
        config: plain data and actors.

    Returns:
        {"ended": how, "step": last step}.
    """
    training = Training(make_task, config)
    try:
        return training.run()
    except GiveUp as error:
        return {"ended": "gave up", "step": training.step, "message": str(error)}
    finally:
        training.close()


class Training:
    """One worker's part of a run."""

    def __init__(self, make_task: MakeTask, config: dict[str, Any]):
        self.config = config
        context = ray.train.get_context()
        self.rank, self.workers = context.get_world_rank(), context.get_world_size()
        self.task = make_task(config, self.rank, self.workers)
        self.settings = settings = self.task.settings
        self.folder: str = config["folder"]
        self.lease = RunLease(self.folder, config["attempt"])
        self.watchdog, self.monitor = Watchdog(settings.watch), StepMonitor(settings.watch, warns=self.rank == 0)
        self.watchdog.reset()
        self.step = 0

        self.micro_batch = settings.resources.micro_batch or slots_per_worker(settings.optim.batch, self.workers, 1)
        slots = slots_per_worker(settings.optim.batch, self.workers, self.micro_batch)
        self.engine, self.optimizer = make_engine(
            self.task.objective,
            self.task.parameter_groups(),
            settings,
            self.micro_batch,
            slots // self.micro_batch,
        )
        self.state = TrainableState(self.engine, self.task.model.trainable())
        self.average = self.task.moving_average(self.state.values())
        self.metrics_log = MetricsLog()
        self.data_loader = self.task.data_loader
        self.is_stopping = False
        if self.rank == 0:
            self.channel = Channel(self.lease.name)
            self.lease_monitor = LeaseMonitor(self.lease, self.channel.is_stop_requested)
            self.log = TrackingLog(Tracker(**config["tracker"]), self.task, self.workers)
            unsent = self.log.sender.unsent
            self.checkpointer = Checkpointer(self.lease, settings.checkpoints, self.channel, unsent)
        self._checked_at = time.monotonic()
        self._preempted: Any = None

    def run(self) -> dict[str, Any]:
        """Train until the end or a stop request. Returns {"ended", "step"} and details of a stopped run."""
        settings = self.settings
        self.resume()
        batches = self.data_loader.from_step(self.step, self.micro_batch, pinned=settings.resources.use_gpu)
        progress = None
        if self.rank == 0:
            progress = open_worker_bar(self.config["step"], settings.optim.steps, "step", self.config["on_terminal"])
            progress.update(self.step)
            self.channel.report(good=self.checkpointer.uploader.good)
            self.log.start(read_unsent(self.folder))
        signal = WorkerSignal.CONTINUE
        if settings.validates_every and self.step == 0:  # baseline of all later samples
            self.validate()
        while self.step < settings.optim.steps:
            signal = self.train_step(batches)
            if progress:
                progress.update(1)
            if signal >= WorkerSignal.STOP:
                break
            if signal == WorkerSignal.CHECK_PREEMPTION:
                self.check_preemption()
            if self.step == settings.optim.steps:
                self.checkpoint(FINISH_SECONDS, self.may_wait)
            elif self.step % settings.checkpoints.every == 0:
                self.checkpoint()
            if settings.validates_every and self.step % settings.validates_every == 0:
                self.validate()
        if progress:
            progress.close()
        if signal == WorkerSignal.FENCED:
            return {"ended": "fenced", "step": self.step}
        if signal >= WorkerSignal.STOP:
            self.is_stopping = True
            self.checkpoint(60 * STOP_SHARE * settings.watch.stop_minutes)
            end = self.last_checkpoint()
            if signal == WorkerSignal.RESTART:
                raise WorkerTerminated(f"worker terminated at step {self.step}; {describe_checkpoint(end)}")
            return end
        try:
            self.write_result()
        except storage.StorageError:
            if self.may_wait():
                raise
            self.is_stopping = True
            return {"ended": "stopped", "step": self.step, **self.checkpointer.end()}
        return {"ended": "finished", "step": self.step}

    def resume(self) -> None:
        """Resume from the newest complete checkpoint, which rank 0 reads and broadcasts."""
        found = load_newest(folder_of(self.folder)) if self.rank == 0 else None
        shared: list[Any] = [found[0].state if found else None]  # small: the history has its own files
        dist.broadcast_object_list(shared, 0)
        if (saved := shared[0]) is None:
            return
        self.step = saved["step"]
        if self.rank == 0:
            self.metrics_log = self.checkpointer.resume(saved)
        else:
            self.metrics_log = MetricsLog.from_parts(summary_of(saved), [])
        tensors = found[1] if found else None
        create_optimizer_state(self.engine, self.optimizer, self.task.blank_batch(self.micro_batch))
        self.state.restore(tensors, self.step - len(self.metrics_log.skipped))
        self.average.load_state_dict(self.state.average_from(tensors))
        if self.rank == 0:
            LOGGER.warning("resuming from step %d (%s)", self.step, found[0].uri if found else "")

    def train_step(self, batches: Iterator[list[Batch]]) -> WorkerSignal:
        """Run one step. Returns the signal that all workers follow after it."""
        self.watchdog.reset()
        settings = self.settings
        set_learning_rates(self.optimizer, self.step + 1, settings.optim)
        set_clip(self.engine, self.step + 1, settings.optim)
        # dropout depends only on seed, step and rank
        torch.manual_seed(1_000_003 * settings.seed + 8_191 * (self.step + 1) + self.rank)
        micro_batches = next(batches)
        collected = backward_and_step(self.engine, micro_batches)
        self.step += 1
        terms, tokens, signal = self.gather(collected, micro_batches)
        skipped = was_skipped(self.engine)
        self.average.update(self.step, self.state.values())
        self.metrics_log.add(self.step, terms, skipped)
        spike = not skipped and self.monitor.record_step(self.step, self.metrics_log.curves["loss"][-1])
        if self.rank == 0:
            norm = gradient_norm(self.engine)
            self.log.step(self.step, self.metrics_log, tokens, self.data_loader.waited, norm, skipped, spike)
        if skipped:
            self.report_skip(micro_batches)
        return signal

    def gather(
        self, collected: list[dict[str, Tensor]], micro_batches: list[Batch]
    ) -> tuple[dict[str, Tensor], Tokens, WorkerSignal]:
        """Gather a step's results from all ranks: one collective call.

        Returns:
            The terms (B,) of all ranks by name, the step's tokens, and the greatest signal of all ranks.
        """
        names = list(collected[0])
        mine = torch.cat([torch.stack([part[name].double() for name in names]) for part in collected], dim=1)
        tokens = sum(b.tokens.all for b in micro_batches)
        extra = torch.tensor([tokens, int(self.own_signal())]).double()
        mine = torch.cat([mine.flatten(), extra.to(mine.device)])
        everyone = [torch.empty_like(mine) for _ in range(self.workers)]
        dist.all_gather(everyone, mine)
        rows = torch.stack(everyone).cpu()
        terms = rows[:, :-2].unflatten(1, (len(names), -1)).transpose(0, 1).flatten(1)
        signal = WorkerSignal(int(rows[:, -1].max()))
        total = micro_batches[0].tokens._replace(all=int(rows[:, -2].sum()))
        return dict(zip(names, terms, strict=True)), total, signal

    def own_signal(self) -> WorkerSignal:
        """Return this rank's signal to all workers."""
        if TERMINATED.is_set():
            return WorkerSignal.RESTART
        if self.rank:
            return WorkerSignal.CONTINUE
        if self.lease_monitor.signal != WorkerSignal.CONTINUE:
            return self.lease_monitor.signal
        due = time.monotonic() - self._checked_at > PREEMPTION_CHECK_SECONDS
        return WorkerSignal.CHECK_PREEMPTION if due else WorkerSignal.CONTINUE

    def check_preemption(self) -> None:
        """Checkpoint once if a node is about to be preempted; a barrier of all workers."""
        self._checked_at = time.monotonic()
        info = ray.train.get_preemption_info()
        if info is not None and info != self._preempted:
            self._preempted = info
            if self.rank == 0:
                LOGGER.warning("nodes %s are about to be preempted", ", ".join(info.preempted_node_ids))
            self.checkpoint()

    def report_skip(self, micro_batches: list[Batch]) -> None:
        """Log the keys of a skipped step on rank 0. Raises GiveUp after too many in a row."""
        mine = [key for batch in micro_batches for key, w in zip(batch.keys, batch.weight, strict=True) if w > 0]
        everyone: list[Any] = [None] * self.workers
        dist.all_gather_object(everyone, mine)
        keys = [key for keys in everyone for key in keys]
        if self.rank == 0:
            self.metrics_log.skipped_keys[str(self.step)] = keys
            self.log.skipped_keys(self.step, keys)
        self.monitor.record_skip(self.step, keys)

    def may_wait(self) -> bool:
        """Return whether rank 0 may keep waiting for the store."""
        self.watchdog.reset()
        return self.lease_monitor.signal == WorkerSignal.CONTINUE

    def checkpoint(self, seconds: float = 0.0, meanwhile: Callable[[], Any] | None = None) -> None:
        """Gather the state (a collective call), and let rank 0 write it in the background.

        Without an applied step nothing is written: there is no optimizer state yet.

        Args:
            seconds: how long rank 0 waits for the write.
            meanwhile: called while waiting; False ends the wait.
        """
        if self.step == len(self.metrics_log.skipped):
            return
        values, moments = self.state.values(), self.state.moments()
        if self.rank:
            return
        tensors = {"trainable": values, "average": self.average.average, **moments}
        state = {
            "step": self.step,
            "seed": self.settings.seed,
            "cursor": dict(zip(("epoch", "batch"), self.cursor(), strict=True)),
            "mlflow_run": self.config["tracker"]["run_id"],
            "workers": self.workers,
            "zero_stage": self.settings.resources.zero_stage,
        }
        self.checkpointer.submit(tensors, state, self.metrics_log)
        if seconds:
            self.checkpointer.uploader.wait(seconds, meanwhile or self.watchdog.reset)
        self.log.pause_ended()

    def last_checkpoint(self) -> dict[str, Any]:
        """Return the result of a stopped run, the same on every rank.

        A collective call: no rank exits before rank 0 has written.

        Returns:
            {"ended", "step", "good": the last complete checkpoint's step, "reason": why it is not this step's}.
        """
        shared: list[Any] = [None]
        if self.rank == 0:
            shared = [self.checkpointer.end()]
        dist.broadcast_object_list(shared, 0)
        return {"ended": "stopped", "step": self.step, **shared[0]}

    def cursor(self) -> tuple[int, int]:
        """Return (epoch, batch within the epoch) of the next step."""
        return divmod(self.step, self.data_loader.order.steps_per_epoch(self.settings.optim.batch))

    def validate(self) -> None:
        """Log images of the moving average, swapped in; before the first step the weights are the average."""
        self.watchdog.reset()
        with self.state.swapped(self.average.average) if self.step else nullcontext():
            image_grid = self.task.sample_images(self.engine.device)
        if self.rank == 0:
            self.log.image("val/pictures", image_grid, self.step)
            self.log.pause_ended()

    def write_result(self) -> None:
        """Write the trained values, their moving average and the metrics log as files of the artifact."""
        values = self.state.values()
        if self.rank:
            return
        files = ((TRAINABLE, values), (AVERAGE, self.average.average))
        for name, tensors in files:
            self.write_file(name, save(copy_to_cpu(tensors)))
        self.write_file(METRICS_LOG, self.metrics_log.to_json().encode())

    def write_file(self, name: str, data: bytes) -> None:
        """Write a file of the artifact; storage errors are retried for FINISH_SECONDS."""
        deadline = time.monotonic() + FINISH_SECONDS
        while True:
            try:
                return storage.write_bytes(storage.join(self.folder, name), data)
            except storage.StorageError as error:
                if not self.may_wait() or time.monotonic() > deadline:
                    raise
                LOGGER.warning("%s cannot be written yet: %s", name, error)
                time.sleep(1.0)

    def close(self) -> None:
        """Wait for pending uploads within their time limits, and end the background threads."""
        if self.rank == 0:
            if not self.is_stopping:
                self.checkpointer.uploader.wait(CLOSE_SECONDS, self.watchdog.reset)
            self.lease_monitor.close()
            share = 60 * (1 - STOP_SHARE) / 3 * self.settings.watch.stop_minutes
            self.log.sender.close(min(TRACKING_SECONDS, share) if self.is_stopping else TRACKING_SECONDS)
        self.watchdog.cancel()
