"""Export a finetune's moving average in the released format, and register it in MLflow's model registry.

The base's weights and Ray are not needed: a run that is still training can be exported from its checkpoints.
"""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow.diffusers
from mlflow.entities import LoggedModelOutput
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.tracking import MlflowClient
from torch import Tensor

from asymflow.adapters import SamplingDefaults, adapter_config, to_released, write_adapter
from asymflow.subspace import Subspace
from asymflow.text_files import read_json_object
from pipelines.core import storage
from pipelines.core.artifacts import Artifact, MissingArtifact
from pipelines.core.base_models import check_base
from pipelines.core.config import ConfigError
from pipelines.core.identity import pin_repositories
from pipelines.core.preflight import check_tracking
from pipelines.core.provenance import read_run
from pipelines.core.scratch import scratch_folder
from pipelines.core.step import Step, find_inputs, identify
from pipelines.core.tracking import Tracker, tracking_uri
from pipelines.train.ema import read_average
from pipelines.train.finetune.card import CARD, model_card, without_header
from pipelines.train.finetune.config import FinetuneSettings, Validation
from pipelines.train.finetune.export_config import ExportSettings, check_export, model_name
from pipelines.train.finetune.export_formats import convert as convert
from pipelines.train.finetune.start import find_basis

FOLDER = "adapter"
ERRORS = (ConfigError, MissingArtifact, storage.StorageError, MlflowException, ValueError, OSError)
"""Exceptions of an export; their messages are one readable line"""
_ABOUT = (
    "Adapters that AsymFlow trained; see each version's card. An alias points to the newest (`newest`, unless "
    "`export.alias` names another), and evaluations write their scores to a version as tags, `SUITE/trained/METRIC`."
)
_NEEDED = ("diffusers", "peft", "safetensors", "torch", "transformers")


def export_run(finetune: Step, settings: FinetuneSettings, request: ExportSettings) -> dict[str, Any]:
    """Export the run of a finetune, finished or not, and register it.

    The released format is written to `adapter/` below `out`. Other formats are converted from it; see `convert`.
    Without `out`, the folder is the finished artifact's, for checkpoints `exports/ID/STEP` in the storage, and for
    other formats `exports/ID/STEP/FORMAT`.

    Args:
        finetune: the step's STEP.
        settings: settings of the run.
        request: settings of the export.

    Returns:
        {"adapter": folder, "step": step, format: folder, "registered": name/version or None}.

    Raises:
        ERRORS: the run cannot be exported.
    """
    out, format = request.out, request.format
    check_base(settings.base, ("transformer",))
    if request.add_to_registry:
        check_export(settings)
        check_tracking(settings.run)
    inputs = find_inputs(finetune, settings)
    settings = pin_repositories(finetune, settings)
    identity, root = identify(finetune, settings, inputs), storage.absolute(settings.run.storage)
    artifact = storage.join(root, finetune.name, identity)
    average = read_average(artifact, request.checkpoint)
    exports = storage.join(root, "exports", identity, f"{average.step:08}")
    folder = out if out and format == "released" else artifact if average.final else exports
    size = image_size(inputs["curated"])
    adapter = export_adapter(settings, find_basis(settings, inputs), average.values, folder, size)
    done = {"adapter": adapter, "step": average.step}
    if format != "released":
        where = out or storage.join(exports, format)
        done[format] = convert(adapter, format, where, settings.base, request.dtype, request.gguf)
    done["registered"] = None
    if request.add_to_registry:
        if not (run := read_run(artifact)):
            raise MissingArtifact(f"{artifact} has no MLflow run to register under: run the finetune first")
        tracker = Tracker(tracking_uri(settings.run), run)
        done["registered"] = register(tracker, adapter, settings, artifact, average.step)
    return done


def image_size(curated: Artifact) -> tuple[int, int]:
    """Return (height, width) of the training images: of several sizes, the one nearest to a square."""
    width, height = min(curated.manifest["config"]["buckets"], key=lambda b: (max(b) / min(b), -b[0] * b[1]))
    return height, width


def sampling_defaults(settings: FinetuneSettings, size: tuple[int, int]) -> SamplingDefaults:
    """Return the validation's sampling parameters, with the padding of captions in training."""
    sampling = settings.validation or Validation()
    shift = sampling.latent_shift if settings.model == "latent" else sampling.shift
    return SamplingDefaults(*size, sampling.steps, sampling.guidance, shift, settings.text_padding, sampling.orthogonal)


def export_adapter(
    settings: FinetuneSettings,
    subspace: Subspace,
    average: Mapping[str, Tensor],
    out: str,
    size: tuple[int, int] = (SamplingDefaults.height, SamplingDefaults.width),
) -> str:
    """Write the adapter's files below a folder. Returns the URI of the adapter's folder.

    Args:
        settings: settings of the finetune.
        subspace: subspace of its basis.
        average: moving average of the trained weights.
        out: a path or an S3 URI.
        size: default (height, width) of sampled images.

    Raises:
        ValueError: a value exceeds float16.
    """
    kind, lora = settings.model, settings.lora
    own = None if kind == "latent" else subspace
    scale = lora.alpha / lora.rank if lora and lora.alpha is not None else 1.0
    base = read_json_object(Path(settings.base) / "transformer" / "config.json")
    tensors = to_released(average, own, scale)
    folder = storage.join(storage.absolute(out), FOLDER)
    with scratch_folder() as scratch:
        config = adapter_config(kind, base, own, head=settings.head_sizes)
        defaults = sampling_defaults(settings, size)
        write_adapter(scratch, tensors, config, own, defaults)
        (scratch / CARD).write_text(model_card(settings, own, defaults), "utf-8")
        storage.put_folder(scratch, folder, last="config.json")
    return folder


def register(tracker: Tracker, adapter: str, settings: FinetuneSettings, artifact: str, step: int) -> str:
    """Log the adapter's files as a model of the tracker's run, and set the alias to it. Returns "name/version".

    An existing version of the same artifact, run and step is reused. `mlflow.diffusers.load_model(uri).adapter_path` is
    a folder for `load_adapter`; MLflow's own `load_pipeline` supports only LoRA.

    Args:
        tracker: the run.
        adapter: folder of the adapter.
        settings: settings of the finetune.
        artifact: the finetune's folder.
        step: optimizer step of the adapter.

    Raises:
        MlflowException: the registry rejects the model.
    """
    client = MlflowClient(tracker.uri, tracker.uri)  # not the process-wide registry, which may differ
    name = model_name(settings)
    base = storage.absolute(settings.base)  # absolute: MLflow would look up a name on a hub
    tags = {"artifact": artifact, "base": base, "kind": settings.model, "step": str(step)}
    found = _find_version(client, name, tracker.run_id, tags) or _make_version(client, name, tracker, adapter, tags)
    client.set_registered_model_alias(name, settings.export.alias, found.version)
    return f"{name}/{found.version}"


def _find_version(client: MlflowClient, name: str, run_id: str, tags: Mapping[str, str]) -> ModelVersion | None:
    try:
        client.create_registered_model(name, description=_ABOUT)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    versions = client.search_model_versions(f"run_id = '{run_id}'")
    same = [v for v in versions if v.name == name and all(v.tags.get(k) == value for k, value in tags.items())]
    return same[0] if same else None


def _make_version(
    client: MlflowClient, name: str, tracker: Tracker, adapter: str, tags: dict[str, str]
) -> ModelVersion:
    """Create a version as `mlflow.diffusers.log_model` does, but in the tracker's run and store."""
    run_id, step = tracker.run_id, int(tags["step"])
    experiment = client.get_run(run_id).info.experiment_id
    logged = client.create_logged_model(experiment, "adapter", run_id, tags)
    try:
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step)])
        model = Model(logged.artifact_location, run_id, model_uuid=logged.model_id, model_id=logged.model_id)
        with storage.local_folder(adapter) as folder, scratch_folder() as scratch:
            mlflow.diffusers.save_model(
                str(folder),
                f"{scratch}/model",
                tags["base"],
                mlflow_model=model,
                pip_requirements=[f"{package}=={version(package)}" for package in _NEEDED],  # else MLflow infers them
                metadata=tags,
            )
            client.log_model_artifacts(logged.model_id, f"{scratch}/model")
    except BaseException:
        client.finalize_logged_model(logged.model_id, "FAILED")
        raise
    client.finalize_logged_model(logged.model_id, "READY")
    named = {**tags, "model_id": logged.model_id}  # MLflow does not return the model's ID of a version
    card = without_header(storage.read_bytes(storage.join(adapter, CARD)).decode())
    return client.create_model_version(
        name, logged.artifact_location, run_id, named, description=card, model_id=logged.model_id
    )
