"""Finetune: the lifted model on real pixels, by Ray Train and DeepSpeed (Sec. 5.2, appendices A.3, A.4, B.2)."""

import json
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import ray.train
from ray.train import TrainingFailedError
from ray.train.torch import TorchTrainer
from safetensors.torch import load_file

from pipelines import storage
from pipelines.artifacts import Artifact
from pipelines.basis import load_subspace
from pipelines.config import ConfigError
from pipelines.datasets import rows_by_group
from pipelines.embeddings import are_latents_stored, is_stored, latent_actors, text_actors
from pipelines.encode import load_unconditional
from pipelines.figures import curves_figure
from pipelines.finetune.attempt import Attempt, stopping_on_sigterm
from pipelines.finetune.config import FinetuneSettings
from pipelines.finetune.perceptual import check_perceptual
from pipelines.finetune.record import AVERAGE, RECORD, Record
from pipelines.models import check_base
from pipelines.steps import Context, Step, StepFailed
from pipelines.stoppable import StoppableTorch

INPUTS = {"curated": "curate", "encoded": "encode", "basis": "basis"}


def check(settings: FinetuneSettings) -> None:
    from pipelines.finetune.export import check_export  # MLflow: in the driver alone, as in `build`

    check_export(settings)
    check_base(settings.base, ("transformer",))
    if settings.loss.kind == "variance_reduced" and settings.loss.perceptual:
        check_perceptual(settings.loss.perceptual)
    if settings.optim.optimizer == "adam8bit" and not PathFinder.find_spec("bitsandbytes"):
        raise ConfigError("optim.optimizer=adam8bit: needs bitsandbytes: pip install 'asymflow[gpu]'")


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
    encoded, encoders = inputs["encoded"], settings.resources
    check_base(settings.base, text=not is_stored(encoded), images=not are_latents_stored(encoded))
    if settings.validation:
        check_base(settings.base, images=settings.model == "latent")
        found = sum(sum(rows_by_group(uri)) for uri in inputs["curated"].files("held_out", ".parquet"))
        if found < settings.validation.pictures:
            raise ConfigError(
                f"validation.pictures={settings.validation.pictures}: only {found} held-out pictures and captions "
                "stand; ask for fewer, or none with validation=null"
            )
    text = 0 if is_stored(encoded) else encoders.text_encoders.workers
    check_processors(settings, text + (0 if are_latents_stored(encoded) else encoders.image_encoders.workers))


def check_processors(settings: FinetuneSettings, encoders: int) -> None:
    """A local Ray would wait for ever for processors that the machine does not have."""
    if settings.run.ray_address or os.environ.get("RAY_ADDRESS"):
        return
    resources, found = settings.resources, len(os.sched_getaffinity(0))
    needed = resources.workers * resources.cpus_per_worker + encoders
    if needed > found:
        raise ConfigError(
            f"resources: workers x cpus_per_worker ({resources.workers} x {resources.cpus_per_worker}) and {encoders} "
            f"encoders need {needed} processors, this machine has {found}; ask for fewer, or join a cluster"
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
    from pipelines.finetune.export import export_adapter, picture_size, register

    settings = with_absolute_paths(settings)
    if not storage.exists(context.file(RECORD)):
        train(settings, context)
    record = Record.from_json(storage.read_bytes(context.file(RECORD)).decode())
    draw(record, context)
    average = storage.read_file(context.file(AVERAGE), load_file)
    size = picture_size(context.inputs["curated"])
    adapter = export_adapter(settings, load_subspace(context.inputs["basis"]), average, context.folder, size)
    register(context.tracker, adapter, settings, context.folder, len(record.steps))
    taken = [i for i, step in enumerate(record.steps) if step not in set(record.skipped)][-100:]
    means = {name: sum(c[i] for i in taken) / len(taken) for name, c in record.curves.items() if taken}
    return means | {"steps": len(record.steps), "skipped": len(record.skipped)}


def train(settings: FinetuneSettings, context: Context) -> None:
    """From the newest checkpoint to the end. Raises StepFailed where it does not come to it."""
    encoded, resources = context.inputs["encoded"], settings.resources
    attempt = Attempt.claim(context.folder)
    with ExitStack() as stack:
        restarts = resources.max_failures
        text = stack.enter_context(text_actors(encoded, settings.base, resources.text_encoders, restarts))
        images = stack.enter_context(latent_actors(encoded, settings.base, resources.image_encoders, restarts))
        stack.enter_context(stopping_on_sigterm(attempt))
        try:
            result: Any = make_trainer(settings, context, attempt, text, images).fit()  # typed as the old Train's
        except TrainingFailedError as error:
            logging.getLogger(__name__).exception("training failed")
            raise StepFailed(f"finetune: workers failed more than {restarts} times: {_cause(error)}") from None
    ended = result.return_value or {}
    again = "; the same command goes on from there"
    match ended.get("ended"):
        case "stopped":
            raise StepFailed(f"finetune: stopped at step {ended['step']}, as asked; a checkpoint stands{again}")
        case "fenced":
            raise StepFailed(f"finetune: stopped at step {ended['step']}: a newer attempt at this run has taken over")
        case "gave up":
            raise StepFailed(f"finetune: {ended['message']}")


def _cause(error: BaseException) -> str:
    """The last line of what a worker raised."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    return str(next(iter(failures.values()))).strip().splitlines()[-1]


def train_function() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What each worker runs. A function inside a function is sent by value: neither the driver nor Ray's controller has
    to import DeepSpeed, which takes seconds and speaks on stdout."""

    def train(config: dict[str, Any]) -> dict[str, Any]:
        from pipelines.finetune.loop import train_loop

        return train_loop(config)

    return train


def make_trainer(
    settings: FinetuneSettings, context: Context, attempt: Attempt, text_encoders: list[Any], image_encoders: list[Any]
) -> TorchTrainer:
    """The encoders are actors that make what the encode step left to them; none where it is stored."""
    curated, encoded, resources = context.inputs["curated"], context.inputs["encoded"], settings.resources
    pictures = curated.files("train", ".parquet")
    return TorchTrainer(
        train_function(),  # type: ignore[arg-type]  # Ray passes on what it returns, and its annotation forgets that
        train_loop_config={
            "settings": settings.model_dump(mode="json"),
            "tracker": vars(context.tracker),
            "folder": context.folder,
            "attempt": attempt.name,
            "subspace": context.inputs["basis"].file("subspace.safetensors"),
            "curated": pictures,
            "latents": encoded.files("latents/train", ".parquet") or [""] * len(pictures),
            "text": encoded.files("text/train", ".parquet"),
            "held_out": curated.files("held_out", ".parquet"),
            "held_out_text": encoded.files("text/held_out", ".parquet"),
            "text_encoders": text_encoders,
            "image_encoders": image_encoders,
            "unconditional": load_unconditional(encoded),
        },
        torch_config=StoppableTorch(timeout_s=round(120 * settings.watch.hang_minutes)),
        scaling_config=ray.train.ScalingConfig(
            num_workers=resources.workers,
            use_gpu=resources.use_gpu,
            resources_per_worker={"CPU": resources.cpus_per_worker, **({"GPU": 1} if resources.use_gpu else {})},
        ),
        # Ray's own state of an attempt; checkpoints are ours, and know nothing of it
        run_config=ray.train.RunConfig(
            name=attempt.name,
            storage_path=storage.join(context.folder, ".train", "ray"),
            failure_config=ray.train.FailureConfig(max_failures=resources.max_failures),
        ),
    )


def draw(record: Record, context: Context) -> None:
    """Loss curves by step, and each term by noise level."""
    curves = {name: values for name, values in record.curves.items() if name not in ("sigma", "omega")}
    context.tracker.log_figure("curves", curves_figure(record.steps, curves, "step"))
    by_sigma = {name: record.means_by_sigma(name) for name in curves}
    centres = record.means_by_sigma("sigma")[0]
    figure = curves_figure(centres, {name: means for name, (_, means) in by_sigma.items()}, "sigma")
    context.tracker.log_figure("by_noise_level", figure)
    for name, (places, means) in by_sigma.items():
        for place, mean in zip(places, means, strict=True):
            context.tracker.log_metrics({f"train/by_sigma/{name}": mean}, step=round(100 * place))
    storage.write_bytes(context.file("summary.json"), json.dumps({"by_sigma": by_sigma}).encode())


def shown(settings: FinetuneSettings) -> dict[str, Any]:
    """All but a head that the model does not have."""
    return settings.model_dump(mode="json", exclude=None if settings.model == "ddt" else {"ddt"})


STEP = Step(
    "finetune",
    FinetuneSettings,
    build,
    inputs=INPUTS,
    check=check,
    check_inputs=check_inputs,
    contents=("base",),
    title=lambda settings: settings.model,
    group=lambda settings: "train/end",
    shown=shown,
)
