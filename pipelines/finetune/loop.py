"""What each training worker runs: DeepSpeed over the objective, checkpoints, and one log."""

import tempfile
import time
from pathlib import Path
from typing import Any

import deepspeed
import ray.train
import torch
import torch.distributed as dist
from ray.experimental import tqdm_ray
from safetensors.torch import save

from asymflow.ema import PowerEMA
from asymflow.models.flux2 import PixelFlux2
from asymflow.subspace import Subspace
from pipelines import storage
from pipelines.embeddings import RemoteText, StoredText
from pipelines.finetune.batches import BatchReader, NoiseSettings, SampleOrder, list_row_groups
from pipelines.finetune.checkpoint import TrainableState, read_checkpoint, write_checkpoint
from pipelines.finetune.config import FinetuneSettings, Optim
from pipelines.finetune.model import build_model
from pipelines.finetune.objective import Objective
from pipelines.finetune.record import AVERAGE, RECORD, TRAINABLE, Record
from pipelines.tracking import Tracker

LOG_EVERY = 20  # steps that go to MLflow together: a request costs as much as a small step


def parameter_groups(model: PixelFlux2, optim: Optim) -> list[dict[str, Any]]:
    """`proj_out` learns at its own rate (appendix B.2)."""
    proj_out = {id(p) for p in model.transformer.proj_out.parameters()}
    named = model.trainable().values()
    return [
        {"params": [p for p in named if id(p) not in proj_out], "lr": optim.lr, "peak": optim.lr},
        {"params": [p for p in named if id(p) in proj_out], "lr": optim.lr_proj_out, "peak": optim.lr_proj_out},
    ]


def deepspeed_config(settings: FinetuneSettings, micro_batch: int, accumulation: int) -> dict[str, Any]:
    stage = settings.resources.zero_stage
    return {
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": settings.optim.clip,
        "zero_optimization": {"stage": stage, "overlap_comm": settings.resources.use_gpu},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": settings.resources.use_gpu},
        "steps_per_print": 10**9,
    }


def train_loop(config: dict[str, Any]) -> dict[str, float]:
    """Ray Train's entry point; `config` holds plain data, and the actors that encode text. Returns the last metrics."""
    settings = FinetuneSettings.model_validate(config["settings"])
    tracker = Tracker(**config["tracker"])
    rank, workers = ray.train.get_context().get_world_rank(), ray.train.get_context().get_world_size()
    share = settings.optim.batch // workers
    micro_batch = settings.resources.micro_batch or share

    subspace = storage.read_file(config["subspace"], Subspace.load)
    model = build_model(settings, subspace).train()
    parameters = model.trainable()
    optimizer = torch.optim.AdamW(
        parameter_groups(model, settings.optim),
        betas=settings.optim.betas,
        weight_decay=settings.optim.weight_decay,
    )
    engine, optimizer, _, _ = deepspeed.initialize(
        model=Objective(model, settings.loss),
        optimizer=optimizer,
        config=deepspeed_config(settings, micro_batch, share // micro_batch),
    )
    state = TrainableState(engine, parameters)
    reader = make_reader(settings, config, rank, workers)
    record = Record(settings.optim.batch)
    ema = PowerEMA(state.values(), settings.ema.gamma, settings.ema.start_step)

    start = 0
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as folder:
            values, average, moments, written = read_checkpoint(Path(folder))
        start, record = written["step"], Record.from_json(written["record"])
        _open_optimizer(engine, next(reader.from_step(start, micro_batch)), optimizer)
        state.restore(values, moments, start)
        ema.load_state_dict(average)
    logged = tracker.last_step("loss") if rank == 0 else 0

    batches = reader.from_step(start, micro_batch)
    progress = tqdm_ray.tqdm(desc="finetune", total=settings.optim.steps, unit="step") if rank == 0 else None
    if progress:
        progress.update(start)
    since = time.monotonic()
    unlogged: dict[int, dict[str, float]] = {}
    for step in range(start + 1, settings.optim.steps + 1):
        set_learning_rates(optimizer, step, settings.optim)
        torch.manual_seed(1_000_003 * settings.seed + 8_191 * step + rank)  # LoRA's dropout, by the step alone too
        terms = train_step(engine, next(batches))
        ema.update(step, state.values())
        record.add(step, terms)
        at_checkpoint = step % settings.checkpoint_every == 0 or step == settings.optim.steps
        if progress:
            seconds, since = time.monotonic() - since, time.monotonic()
            if step > logged:
                unlogged[step] = {**record.last(), "seconds_per_step": seconds}
            if at_checkpoint or len(unlogged) == LOG_EVERY:
                tracker.log_history(unlogged)
                unlogged = {}
            progress.update(1)
        if at_checkpoint:
            report_checkpoint(state, ema, record, step, rank)
    if progress:
        progress.close()
    if rank == 0:
        write_result(config["folder"], state, ema, record)
    else:
        state.values()
    return record.last()


def make_reader(settings: FinetuneSettings, config: dict[str, Any], rank: int, workers: int) -> BatchReader:
    groups = list_row_groups(config["curated"], config["latents"], config["text"])
    encoders = config["text_encoders"]
    noise = NoiseSettings(
        settings.time.mean, settings.time.std, settings.time.shift, settings.loss.caption_dropout
    )
    return BatchReader(
        SampleOrder(groups, settings.seed, settings.shuffle_window),
        settings.optim.batch,
        rank,
        workers,
        RemoteText(encoders, rank) if encoders else StoredText(),
        config["unconditional"],
        noise,
    )


def set_learning_rates(optimizer: torch.optim.Optimizer, step: int, optim: Optim) -> None:
    """Warm-up, the peak, and a cool-down where one is set; a function of the step alone."""
    rising = step / optim.warmup_steps if optim.warmup_steps else 1.0
    falling = (optim.steps - step + 1) / optim.cooldown_steps if optim.cooldown_steps else 1.0
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * min(1.0, rising, falling)


def train_step(engine: Any, micro_batches: list) -> dict[str, torch.Tensor]:
    """One optimizer step; the terms (B,) of the whole global batch, on every rank."""
    collected = []
    for micro_batch in micro_batches:
        micro_batch = micro_batch.to(engine.device)
        loss, terms = engine(micro_batch)
        engine.backward(loss)
        engine.step()
        collected.append(torch.stack([micro_batch.sigma, *terms.values()]))
    names = ["sigma", *terms]
    mine = torch.cat(collected, dim=1).cpu()
    everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, mine.to(engine.device) if engine.device.type == "cuda" else mine)
    return dict(zip(names, torch.cat(everyone, dim=1), strict=True))


def _open_optimizer(engine: Any, micro_batches: list, optimizer: torch.optim.Optimizer) -> None:
    """Take one step of zero length, so that the optimizer's state exists and can be set.

    DeepSpeed makes that state at the first step; zero gradients and a zero rate leave the values as they are.
    """
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    for micro_batch in micro_batches:
        loss, _ = engine(micro_batch.to(engine.device))
        engine.backward(0.0 * loss)
        engine.step()


def report_checkpoint(state: TrainableState, ema: PowerEMA, record: Record, step: int, rank: int) -> None:
    """A collective call; rank 0 writes. The loss of every step so far travels with it."""
    values, moments = state.values(), state.moments()
    metrics = {"step": step, **record.last()}
    if rank:
        ray.train.report(metrics)
        return
    folder = tempfile.mkdtemp()  # Ray deletes it after the upload
    write_checkpoint(Path(folder), values, ema.state_dict(), moments, {"step": step, "record": record.to_json()})
    ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


def write_result(folder: str, state: TrainableState, ema: PowerEMA, record: Record) -> None:
    """The trained values, their moving average, and the loss curve, as files of the artifact."""
    for name, tensors in ((TRAINABLE, state.values()), (AVERAGE, ema.state_dict())):
        data = save({k: v.cpu().contiguous() for k, v in tensors.items()})
        storage.write_bytes(storage.join(folder, name), data)
    storage.write_bytes(storage.join(folder, RECORD), record.to_json().encode())
