"""Overhead of Ray, DeepSpeed, logging and checkpoints in a training step of the toy model, on one worker.

    python benchmarks/training_loop.py [--batch 32] [--steps 60] [--rounds 3] [--zero 0]

The loop of the finetune job, under Ray Train with DeepSpeed, MLflow and monitoring, is compared with a plain PyTorch
loop over the same model, objective, batches, clipping, AdamW and moving average. Both run in turns, in separate
processes, on images of the demo's size; the medians of the time from one step's start to the next's are compared.

Then the loop writes a checkpoint every 20 steps. The delay of a checkpoint is the time of the ten steps around it minus
that of the next ten. It is written in the background, so the delay consists of the copy and of the processor time of
the write.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch  # noqa: E402
from PIL import Image  # noqa: E402

from pipelines.core import storage  # noqa: E402
from pipelines.core.artifacts import load_artifact  # noqa: E402
from pipelines.core.config import validate  # noqa: E402
from pipelines.core.step import run_step  # noqa: E402
from pipelines.data import encode  # noqa: E402
from pipelines.data.basis import step as basis  # noqa: E402
from pipelines.data.curate import step as curate  # noqa: E402
from pipelines.toy.data import DemoImage, write_img2dataset  # noqa: E402
from pipelines.train import driver  # noqa: E402
from pipelines.train.finetune.config import FinetuneSettings  # noqa: E402
from pipelines.train.finetune.step import STEP  # noqa: E402
from pipelines.train.task import MakeTask  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
BASE = str(ROOT / "models" / "toy_klein")
SIDE, PICTURES = 64, 320
WARM_UP, EVERY, WINDOW = 10, 20, 10
LOOP_BAR, CHECKPOINT_BAR = 1.05, 0.02


def make_images() -> list[DemoImage]:
    found = []
    for seed in range(PICTURES):
        torch.manual_seed(seed)
        coarse = torch.randint(0, 256, (8, 8, 3), dtype=torch.uint8).numpy()
        buffer = io.BytesIO()
        Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(buffer, "JPEG")
        found.append(DemoImage(f"picture {seed}", buffer.getvalue(), aesthetic=6.0))
    return found


def make_inputs(folder: Path) -> dict[str, str]:
    """Return the URIs of the artifacts that the finetune needs."""
    write_img2dataset(iter(make_images()), folder / "shards")
    run = {"storage": str(folder / "runs")}
    source = {"source": str(folder / "shards"), "buckets": [[SIDE, SIDE]], "filters": {"min_side": SIDE}}
    made = {"curated": run_step(curate.STEP, validate(curate.STEP.settings, {**source, "run": run})).artifact.uri}
    of_base = {**made, "base": BASE, "run": run}
    made["encoded"] = run_step(encode.STEP, validate(encode.STEP.settings, of_base)).artifact.uri
    made["basis"] = run_step(basis.STEP, validate(basis.STEP.settings, {**made, "run": run})).artifact.uri
    return made


def settings_of(made: dict[str, str], folder: Path, batch: int, steps: int, zero_stage: int, every: int):
    return validate(
        FinetuneSettings,
        {
            **made,
            "base": BASE,
            "run": {"storage": str(folder)},
            "lora": {"rank": 64, "dropout": 0.05},
            "optim": {"batch": batch, "steps": steps},
            "loss": {"perceptual": None},
            "ema": {"start_step": 1},
            "checkpoints": {"every": every},
            "validation": None,
            "resources": {"workers": 1, "cpus_per_worker": os.cpu_count(), "zero_stage": zero_stage},
        },
    )


def timed_loop(task: MakeTask, config: dict[str, Any]) -> dict[str, Any]:
    """Run the finetune's loop and write the start time of each step to a file beside its checkpoints."""
    from pipelines.train import loop

    class Timed(loop.Training):
        def train_step(self, batches):
            times.append(time.perf_counter())
            return super().train_step(batches)

    times: list[float] = []
    training = Timed(task, config)
    try:
        return training.run()
    finally:
        training.close()
        storage.write_bytes(storage.join(config["folder"], ".times.json"), json.dumps(times).encode())


def run_job(settings: FinetuneSettings) -> list[float]:
    artifact = run_step(STEP, settings).artifact
    return json.loads(storage.read_bytes(artifact.file(".times.json")))


def bare(settings: FinetuneSettings) -> list[float]:
    """Run the same steps without Ray, DeepSpeed, metrics and logs."""
    from asymflow.ema import PowerEMA
    from pipelines.data.basis.step import load_subspace
    from pipelines.data.encode import load_unconditional
    from pipelines.train.engine import set_learning_rates
    from pipelines.train.finetune.model import build_model
    from pipelines.train.finetune.task import make_data_loader, make_objective, parameter_groups

    curated, encoded = load_artifact(settings.curated), load_artifact(settings.encoded)
    model = build_model(settings, load_subspace(load_artifact(settings.basis)))
    objective, optim = make_objective(model, settings.loss), settings.optim
    optimizer = torch.optim.AdamW(parameter_groups(model, optim), betas=optim.betas, weight_decay=optim.weight_decay)
    average = PowerEMA(model.trainable(), settings.ema.gamma, settings.ema.start_step)
    config = {
        "curated": curated.files("train", ".parquet"),
        "latents": encoded.files("latents/train", ".parquet"),
        "text": encoded.files("text/train", ".parquet"),
        "text_encoders": [],
        "image_encoders": [],
        "unconditional": load_unconditional(encoded),
    }
    batches = make_data_loader(settings, config, rank=0, workers=1).from_step(0, optim.batch)
    times = []
    for step in range(1, optim.steps + 1):
        times.append(time.perf_counter())
        set_learning_rates(optimizer, step, optim)
        torch.manual_seed(step)
        for batch in next(batches):
            objective(**batch.inputs())[0].backward()
        torch.nn.utils.clip_grad_norm_(model.trainable().values(), optim.clip)
        optimizer.step()
        optimizer.zero_grad()
        average.update(step)
    return times


def run_bare(settings: FinetuneSettings) -> list[float]:
    command = [sys.executable, __file__, "--worker", settings.model_dump_json()]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def steps_between(times: list[float]) -> list[float]:
    return [after - before for before, after in zip(times[WARM_UP:], times[WARM_UP + 1 :], strict=False)]


def compare_loops(made: dict[str, str], folder: Path, batch: int, steps: int, rounds: int, zero_stage: int) -> None:
    job: list[float] = []
    plain: list[float] = []
    print(f"one worker, batch {batch}, {steps} steps a round, ZeRO {zero_stage}, {torch.get_num_threads()} threads")
    print(f"{'':10}{'bare, ms a step':>18}{'job, ms a step':>18}{'ratio':>8}")
    for number in range(1, rounds + 1):
        settings = settings_of(made, folder / f"round-{number}", batch, steps, zero_stage, every=10 * steps)
        latest = [steps_between(run(settings)) for run in (run_bare, run_job)]
        plain, job = plain + latest[0], job + latest[1]
        _print_row(f"round {number}", *latest)
    _print_row("all", plain, job, f", bar {LOOP_BAR:.2f}")


def _print_row(name: str, plain: list[float], job: list[float], bar: str = "") -> None:
    a, b = statistics.median(plain), statistics.median(job)
    print(f"{name:10}{1000 * a:>18.1f}{1000 * b:>18.1f}{b / a:>8.3f}{bar}", flush=True)


def measure_checkpoints(made: dict[str, str], folder: Path, batch: int, zero_stage: int, count: int = 10) -> None:
    steps = EVERY * (count + 1)
    settings = settings_of(made, folder / "checkpoints", batch, steps, zero_stage, EVERY)
    times = run_job(settings)
    ends = range(EVERY, steps - EVERY + 1, EVERY)  # a checkpoint begins when so many steps are done
    with_one = [times[end + WINDOW - 1] - times[end - 1] for end in ends]
    without = [times[end + 2 * WINDOW - 1] - times[end + WINDOW - 1] for end in ends]
    delay = statistics.median(with_one) - statistics.median(without)
    step = statistics.median(without) / WINDOW
    files = [f for f in (folder / "checkpoints").rglob(".train/checkpoints/*/*.safetensors")]
    size = sum(f.stat().st_size for f in files) / max(1, len({f.parent for f in files}))
    print(f"a checkpoint of {size / 1e6:.1f} MB delays the training by {1000 * delay:.0f} ms ({count} checkpoints)")
    for every in (EVERY, 100, 250):
        print(f"  one every {every:>3} steps of {1000 * step:.0f} ms: {delay / (every * step):>6.2%}", end="")
        print(f", bar {CHECKPOINT_BAR:.0%}" if every == 100 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=60, help="of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--zero", type=int, default=0, help="ZeRO stage of the job")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(bare(FinetuneSettings.model_validate_json(args.worker))))
        return
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        made = make_inputs(folder)
        driver.train_function = lambda task: lambda config: timed_loop(task, config)
        compare_loops(made, folder, args.batch, args.steps, args.rounds, args.zero)
        print()
        measure_checkpoints(made, folder, args.batch, args.zero)


if __name__ == "__main__":
    main()
