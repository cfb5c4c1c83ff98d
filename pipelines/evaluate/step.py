"""Evaluate step: sample images, score them, and compute the measures.

What loads diffusers is imported where it is used: a cached artifact does not need it.
"""

import json
from collections.abc import Mapping
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from asymflow.metrics.references import Reference, load_reference
from asymflow.metrics.weights import MissingWeights
from pipelines.core import storage
from pipelines.core.artifacts import Artifact
from pipelines.core.base_models import check_base, read_patch_size
from pipelines.core.config import ConfigError
from pipelines.core.step import Context, Outcome, Step, StepFailed
from pipelines.data.datasets import find_test_split
from pipelines.data.images import encode_png
from pipelines.evaluate.config import EvaluateSettings
from pipelines.evaluate.found_images import match_images
from pipelines.evaluate.image_sets import REAL, ImageSet, load_found_images, reference_images, store_images
from pipelines.evaluate.measures import MeasureInput, Row, ScoredImages
from pipelines.evaluate.prompts import Generation, list_generations, read_held_out
from pipelines.evaluate.score import score
from pipelines.evaluate.selection import (
    ADAPTER,
    column_of,
    hash_overrides,
    measures_of,
    models_of,
    read_prompts,
    repeats_of,
    scorers_of,
    suite_of,
)
from pipelines.evaluate.set_measures import PrecisionRecall
from pipelines.evaluate.show import TABLE, group_of, report, table_of
from pipelines.sample.step import check_model

if TYPE_CHECKING:
    from pipelines.evaluate.class_subject import ClassModel
    from pipelines.evaluate.subject import EvaluatedModel

_SOURCES = ("adapter", "finetuned", "pretrained", "registered", "pictures")


def check(settings: EvaluateSettings) -> None:
    """Check models, images, scorers and thresholds before Ray starts. Raises ConfigError."""
    suite = suite_of(settings)
    sources = [name for name in _SOURCES if getattr(settings, name)]
    if len(sources) > 1:
        raise ConfigError(f"{' and '.join(sources)}: only one of them may be given")
    if suite.by_class and not (settings.pretrained or settings.pictures):
        raise ConfigError(
            f"pretrained: missing; {settings.suite} is for class-conditional models; give an artifact of the pretrain "
            "step, or a folder of images in `pictures`"
        )
    if settings.pretrained and not suite.by_class:
        raise ConfigError(f"pretrained={settings.pretrained!r}: is class-conditional, but {settings.suite} has prompts")
    if settings.pictures:
        if settings.models not in (None, ["trained"]):
            raise ConfigError(f"models={settings.models}: `pictures` allows only trained")
    elif settings.pretrained:
        if settings.models not in (None, ["trained"]):
            raise ConfigError(f"models={settings.models}: `pretrained` allows only trained")
    elif not settings.base:
        raise ConfigError("base: missing; the folder of the latent model")
    elif "trained" not in models_of(settings) or settings.finetuned or settings.registered:
        check_base(settings.base, ("transformer",), images="latent" in models_of(settings), text=True)
    else:
        check_model(settings.base, settings.adapter, latent=models_of(settings) != ["trained"])
    is_sampled = settings.base and not (settings.pictures or settings.pretrained)
    if is_sampled and (side := read_patch_size(settings.base)):
        settings.sampling.check_size(side, "sampling.")
    unknown = sorted(set(settings.leave_out) - set(suite.scorers))
    if unknown:
        raise ConfigError(f"leave_out={unknown}: {settings.suite} has the scorers {', '.join(suite.scorers)}")
    for name in scorers_of(settings):
        try:
            getattr(settings.scorers, name).identity()
        except MissingWeights as error:
            choice = f"leave_out: [{name}] does without it, and without what it measures"
            raise ConfigError(f"scorers.{name}.{error}; {choice}") from None
    if suite.read:
        read_prompts(settings, None)
    names = [name for measure in measures_of(settings) for name in measure.names]
    metrics = [f"{model}/{name}" for model in models_of(settings) for name in names]
    for section in ("floors", "ceilings"):
        for name in getattr(settings, section):
            if name not in metrics:
                raise ConfigError(f"{section}.{name}: no such score; there are {', '.join(metrics)}")
    if any(measure.needs_real for measure in measures_of(settings)) and suite.read and not settings.reference.source:
        raise ConfigError("reference.source: missing; a folder of real images, or an .npz with their statistics")
    if settings.reference.source and not settings.reference.source.endswith(".npz"):
        reference_images(settings.reference.source)


def check_inputs(settings: EvaluateSettings, inputs: Mapping[str, Artifact]) -> None:
    """Check prompts, image sizes and the basis against the input artifacts. Raises ConfigError."""
    if not suite_of(settings).read and "curated" not in inputs:
        raise ConfigError(f"curated: missing; {settings.suite} uses its held-out captions and images")
    prompts = read_prompts(settings, inputs.get("curated"))
    if "pretrained" in inputs:
        from pipelines.evaluate.class_subject import read_class_model, read_pretrain_settings

        read_class_model(inputs["pretrained"], settings.pretrained_step)
        settings.sampling.check_size(read_pretrain_settings(inputs["pretrained"]).jit.patch_size, "sampling.")
    if settings.pictures:
        match_images(settings.pictures, list_generations(prompts, repeats_of(settings)), repeats_of(settings))
    if "lifted" in models_of(settings) and not (settings.adapter or {"basis", "finetuned"} & inputs.keys()):
        raise ConfigError("basis: missing; a lifted model needs one")


def pin_registered(settings: EvaluateSettings, latest: bool) -> EvaluateSettings:
    """Return the settings with the registry's alias replaced by its present version. Raises ConfigError.

    Args:
        settings: settings of the evaluation.
        latest: whether `registered` defaults to EXPERIMENT@newest.
    """
    from pipelines.evaluate.registry import pin_version  # MLflow: imported in the driver alone

    name = settings.registered or (f"{settings.run.experiment}@newest" if latest else "")
    if not name:
        return settings
    settings = settings.model_copy(update={"registered": name})
    check(settings)
    return settings.model_copy(update={"registered": pin_version(name, settings.run)})


def shown(settings: EvaluateSettings) -> dict[str, Any]:
    """Return the settings to log: without scorers that the suite does not use."""
    tree = settings.model_dump(mode="json")
    return tree | {"scorers": {name: tree["scorers"][name] for name in scorers_of(settings)}}


def summarize(outcome: Outcome) -> str:
    """Return the table of a finished evaluation."""
    return table_of(json.loads(storage.read_bytes(outcome.artifact.file(TABLE))))


def check_thresholds(settings: EvaluateSettings, outcome: Outcome) -> None:
    """Raise StepFailed if scores are below `floors` or above `ceilings`."""
    metrics = outcome.artifact.manifest["metrics"]
    if missing := sorted({*settings.floors, *settings.ceilings} - metrics.keys()):
        raise StepFailed(f"{settings.suite}: {', '.join(missing)}: these prompts have no such score")
    low = [f"{k} is {metrics[k]:.4g}, below its floor {v:g}" for k, v in settings.floors.items() if metrics[k] < v]
    high = [f"{k} is {metrics[k]:.4g}, above its ceiling {v:g}" for k, v in settings.ceilings.items() if metrics[k] > v]
    if low or high:
        raise StepFailed(f"{settings.suite}: {'; '.join(low + high)}")


def build(settings: EvaluateSettings, context: Context) -> dict[str, float]:
    """Sample and score what is not cached, compute the measures, report them, and link them to the registry."""
    from pipelines.evaluate.registry import link  # MLflow: imported in the driver alone

    root = storage.absolute(settings.run.storage)
    prompts = read_prompts(settings, context.inputs.get("curated"))
    repeats = repeats_of(settings)
    generations = list_generations(prompts, repeats)
    subject = find_evaluated_model(settings, context) if not settings.pictures else None
    sets = sample_images(settings, subject, generations, root)
    reference, real = find_real(settings, context, len(prompts), root)
    all_sets = {**sets, **({REAL: real} if real else {})}
    needed = {measure.scorer for measure in measures_of(settings) if measure.needs_real}
    scores: dict[str, dict] = {label: {} for label in all_sets}
    for name in scorers_of(settings):
        scored_sets = all_sets if name in needed else sets
        for label, found in score(scored_sets, generations, name, getattr(settings.scorers, name), root).items():
            scores[label][name] = found
    images = {label: ScoredImages(found, scores[label]) for label, found in all_sets.items()}
    compare = partial(MeasureInput, generations, repeats)
    rows: list[Row] = []
    for model in sets:
        evaluated = compare(images[model], images.get(REAL), reference, settings.bootstrap)
        rows += [
            {"model": model, "better": measure.better, **row}
            for measure in measures_of(settings)
            for row in measure.rows(evaluated)
        ]
    report(settings, context, generations, images, rows)
    metrics = {f"{row['model']}/{row['metric']}": row["value"] for row in rows if not row["category"]}
    link(context.tracker, subject.lineage if subject else {}, settings.suite, metrics)
    return metrics


def sample_images(
    settings: EvaluateSettings, subject: "EvaluatedModel | ClassModel | None", generations: list[Generation], root: str
) -> dict[str, ImageSet]:
    """Return the images of each model, sampled unless cached or given."""
    from pipelines.evaluate.generate import generate

    if subject is None:
        return {"trained": load_found_images(settings.pictures, generations, repeats_of(settings), root)}
    given = settings.sampling.model_dump(exclude_defaults=True)
    sampling = settings.sampling.model_copy(update={**suite_of(settings).sampling, **given})
    parameters = sampling.resolve(subject.defaults)
    return generate(subject, models_of(settings), parameters, generations, root, settings.resources)


def find_evaluated_model(settings: EvaluateSettings, context: Context) -> "EvaluatedModel | ClassModel":
    """Return the model of the settings: from an adapter, an artifact or the registry."""
    from pipelines.evaluate.registry import fetch, lineage_of

    if pretrained := context.inputs.get("pretrained"):
        from pipelines.evaluate.class_subject import read_class_model

        return read_class_model(pretrained, settings.pretrained_step)
    lineage: dict[str, str] = {}
    adapter = settings.adapter
    if finetuned := context.inputs.get("finetuned"):
        adapter = finetuned.file(ADAPTER)
        lineage = lineage_of(finetuned, settings.run)
    if settings.registered:
        adapter, lineage = fetch(settings.registered, settings.run)
    if adapter and storage.is_local(adapter) and storage.exists(adapter):
        adapter = storage.absolute(adapter)  # workers have other working directories
    from pipelines.evaluate.subject import read_evaluated_model

    return read_evaluated_model(settings.base, adapter, context.inputs.get("basis"), lineage, context.folder)


def find_real(
    settings: EvaluateSettings, context: Context, count: int, root: str
) -> tuple[Reference | None, ImageSet | None]:
    """Return the reference of distances: statistics given as numbers, and real images."""
    if suite_of(settings).read is None:
        curated = context.inputs["curated"]
        column = column_of(suite_of(settings))
        encoded = (image for _, image in islice(read_held_out(curated, column), count))
        protocol = {"held out of" if find_test_split(curated, 2) == "held_out" else "trained on": curated.id}
        return None, store_images(encoded, protocol, count, root)
    source = settings.reference.source
    if not source:
        return None, None
    if not source.endswith(".npz"):
        return None, reference_images(source)
    precise = any(isinstance(measure, PrecisionRecall) for measure in measures_of(settings))
    reference = storage.read_file(source, partial(load_reference, images=precise))
    if reference.images is None:
        return reference, None
    protocol = {"reference": reference.sha256}
    return reference, store_images(map(_png, reference.images), protocol, len(reference.images), root)


def _png(pixels: np.ndarray) -> bytes:
    return encode_png(Image.fromarray(pixels))


STEP = Step(
    "evaluate",
    EvaluateSettings,
    build,
    inputs=EvaluateSettings.inputs,
    check=check,
    check_inputs=check_inputs,
    contents=("base", "adapter", "pictures", "prompts.file", "reference.source"),
    repositories=("adapter",),
    hash_overrides=hash_overrides,
    title=lambda settings: settings.suite,
    group=group_of,
    shown=shown,
)
