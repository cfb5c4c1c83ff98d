"""Finetune: the lifted model on real pixels, by Ray Train and DeepSpeed (Sec. 5.2, appendices A.3, A.4, B.2)."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray.train
from ray.train.torch import TorchTrainer

from pipelines import storage
from pipelines.artifacts import Artifact
from pipelines.basis import load_subspace
from pipelines.config import ConfigError
from pipelines.embeddings import is_stored, text_actors
from pipelines.encode import load_unconditional
from pipelines.figures import curves_figure
from pipelines.finetune.config import FinetuneSettings
from pipelines.finetune.perceptual import check_perceptual
from pipelines.finetune.record import RECORD, Record
from pipelines.models import check_base
from pipelines.steps import Context, Step

INPUTS = {"curated": "curate", "encoded": "encode", "basis": "basis"}


def check(settings: FinetuneSettings) -> None:
    check_base(settings.base, ("transformer",))
    if settings.loss.kind == "variance_reduced" and settings.loss.perceptual:
        check_perceptual(settings.loss.perceptual)


def check_inputs(settings: FinetuneSettings, inputs: Mapping[str, Artifact]) -> None:
    """The basis fits the model, the encoding the pictures; and the base can encode the text that is left to it."""
    subspace, pixels = load_subspace(inputs["basis"]), settings.pixels
    if subspace.layout != pixels.layout:
        raise ConfigError(f"basis: its patches are {subspace.layout}, pixels.layout={pixels.layout!r} asks otherwise")
    if subspace.patch_dim != 3 * pixels.patch_size**2:
        raise ConfigError(
            f"basis: patches of {subspace.patch_dim} values; pixels.patch_size={pixels.patch_size} needs "
            f"{3 * pixels.patch_size**2}"
        )
    mean, std = subspace.space.mean, subspace.space.std
    if pixels.mean is not None and tuple(pixels.mean) != tuple(mean):
        raise ConfigError(f"basis: made for an Oklab mean of {mean}, pixels.mean={pixels.mean} asks otherwise")
    if pixels.std is not None and pixels.std != std:
        raise ConfigError(f"basis: made for an Oklab std of {std}, pixels.std={pixels.std} asks otherwise")
    if inputs["encoded"].manifest["inputs"]["curated"] != inputs["curated"].id:
        raise ConfigError("encoded: made from another curated artifact than `curated`; run the encode step on it")
    if not is_stored(inputs["encoded"]):
        check_base(settings.base, text=True)
    sizes = inputs["curated"].manifest["config"]["buckets"]
    if len(sizes) > 1:
        raise ConfigError(f"curated: its pictures have {len(sizes)} sizes and a batch has one; curate into one bucket")
    check_processors(settings, 0 if is_stored(inputs["encoded"]) else settings.resources.text_encoders.workers)


def check_processors(settings: FinetuneSettings, encoders: int) -> None:
    """A local Ray would wait for ever for processors that the machine does not have."""
    if settings.run.ray_address or os.environ.get("RAY_ADDRESS"):
        return
    resources, found = settings.resources, len(os.sched_getaffinity(0))
    needed = resources.workers * resources.cpus_per_worker + encoders
    if needed > found:
        raise ConfigError(
            f"resources: workers x cpus_per_worker ({resources.workers} x {resources.cpus_per_worker}) and {encoders} "
            f"text encoders need {needed} processors, this machine has {found}; ask for fewer, or join a cluster"
        )


def with_absolute_paths(settings: FinetuneSettings) -> FinetuneSettings:
    """For workers: Ray Train gives them another working directory."""
    loss, judge = settings.loss, settings.loss.perceptual
    if judge and Path(judge.weights).is_file():
        judge = judge.model_copy(update={"weights": storage.absolute(judge.weights)})
    return settings.model_copy(
        update={"base": storage.absolute(settings.base), "loss": loss.model_copy(update={"perceptual": judge})}
    )


def build(settings: FinetuneSettings, context: Context) -> dict[str, float]:
    settings, resources = with_absolute_paths(settings), settings.resources
    encoded = context.inputs["encoded"]
    with text_actors(encoded, settings.base, resources.text_encoders, resources.max_failures) as encoders:
        make_trainer(settings, context, encoders).fit()
    record = Record.from_json(storage.read_bytes(context.file(RECORD)).decode())
    draw(record, context)
    tail = slice(-min(100, len(record.steps)), None)
    return {name: sum(c[tail]) / len(c[tail]) for name, c in record.curves.items()} | {"steps": len(record.steps)}


def make_trainer(settings: FinetuneSettings, context: Context, text_encoders: list[Any]) -> TorchTrainer:
    """`text_encoders` are actors that embed captions; none where the embeddings are stored."""
    from pipelines.finetune.loop import train_loop  # DeepSpeed takes seconds to import, and says so on stdout

    encoded, resources = context.inputs["encoded"], settings.resources
    return TorchTrainer(
        train_loop,  # type: ignore[arg-type]  # Ray passes on what it returns, and its annotation forgets that
        train_loop_config={
            "settings": settings.model_dump(mode="json"),
            "tracker": vars(context.tracker),
            "folder": context.folder,
            "subspace": context.inputs["basis"].file("subspace.safetensors"),
            "curated": context.inputs["curated"].files("train", ".parquet"),
            "latents": encoded.files("latents/train", ".parquet"),
            "text": encoded.files("text/train", ".parquet"),
            "text_encoders": text_encoders,
            "unconditional": load_unconditional(encoded),
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=resources.workers,
            use_gpu=resources.use_gpu,
            resources_per_worker={"CPU": resources.cpus_per_worker, **({"GPU": 1} if resources.use_gpu else {})},
        ),
        # one name for one artifact: run again, Ray Train finds the last checkpoint and goes on
        run_config=ray.train.RunConfig(
            name="train",
            storage_path=storage.join(context.folder, ".train"),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            failure_config=ray.train.FailureConfig(max_failures=resources.max_failures),
        ),
    )


def draw(record: Record, context: Context) -> None:
    """Loss curves by step, and each term by noise level."""
    curves = {name: values for name, values in record.curves.items() if name != "sigma"}
    context.tracker.log_figure("curves", curves_figure(record.steps, curves, "step"))
    by_sigma = {name: record.means_by_sigma(name) for name in curves}
    centres = record.means_by_sigma("sigma")[0]
    figure = curves_figure(centres, {name: means for name, (_, means) in by_sigma.items()}, "sigma")
    context.tracker.log_figure("by_noise_level", figure)
    for name, (places, means) in by_sigma.items():
        for place, mean in zip(places, means, strict=True):
            context.tracker.log_metrics({f"by_sigma/{name}": mean}, step=round(100 * place))
    storage.write_bytes(context.file("summary.json"), json.dumps({"by_sigma": by_sigma}).encode())


STEP = Step(
    "finetune",
    FinetuneSettings,
    build,
    inputs=INPUTS,
    check=check,
    check_inputs=check_inputs,
    contents=("base",),
)
