"""A published checkpoint of JiT or AsymFlow-ImageNet as an artifact of the pretrain step, ready to be evaluated."""

import json
from functools import partial

from asymflow.content import content_of
from asymflow.models.jit_checkpoints import PublishedJiT, read_published
from asymflow.tensor_files import write_tensors
from pipelines.core import storage
from pipelines.core.artifacts import MANIFEST, Artifact, artifact_id, load_artifact, write_manifest
from pipelines.core.config import ConfigError, validate
from pipelines.train.metrics_log import AVERAGE
from pipelines.train.pretrain.config import ImportJitSettings, PretrainSettings
from pipelines.train.pretrain.model import SUBSPACE, SUMMARY

STEP = "pretrain"
_NETWORK = ("width", "depth", "heads", "bottleneck", "context_from", "context_tokens", "dropout", "patch_size")
_OWN = "network."
"""Prefix of the network's parameters in `PixelJiT`"""


def import_checkpoint(settings: ImportJitSettings) -> Artifact:
    """Return the artifact of a checkpoint; one that exists is not made again. Raises ConfigError."""
    try:
        found = read_published(settings.checkpoint, settings.context_from, settings.noise_scale, settings.entry)
        config = pretrain_settings(settings, found)
    except ValueError as error:
        raise ConfigError(f"checkpoint: {error}") from None
    hashed = settings.model_dump(mode="json", exclude={"run"}) | {"checkpoint": content_of(settings.checkpoint)}
    identity = artifact_id(settings.step, hashed, {})
    folder = storage.join(storage.absolute(settings.run.storage), STEP, identity)
    if storage.exists(storage.join(folder, MANIFEST)):
        return load_artifact(folder, STEP)
    average = {f"{_OWN}{name}": value.float() for name, value in found.values.items()}
    storage.write_file(
        storage.join(folder, AVERAGE), partial(write_tensors, tensors=average, metadata={"format": "pt"})
    )
    storage.write_file(storage.join(folder, SUBSPACE), found.subspace.save)
    summary = {"by_sigma": {}, "size": [found.side, found.side]}
    storage.write_bytes(storage.join(folder, SUMMARY), json.dumps(summary).encode())
    return write_manifest(folder, STEP, identity, config, {}, {})


def pretrain_settings(settings: ImportJitSettings, found: PublishedJiT) -> PretrainSettings:
    """Return the settings of a pretrain that has this model. ValueError for shapes that it has no settings for."""
    jit = vars(found.config)
    tree = {
        "curated": settings.checkpoint,
        "basis": settings.checkpoint,
        "classes": found.config.classes,
        "network": {name: jit[name] for name in _NETWORK} | {"noise_scale": found.noise_scale},
        "subspace": {"rank": found.subspace.rank},
        "validation": {"steps": settings.steps, "guidance": settings.guidance},
        "run": settings.run.model_dump(),
    }
    config = validate(PretrainSettings, tree)
    if config.jit != found.config:
        raise ValueError(f"its mlp_ratio is {found.config.mlp_ratio:g}; only {config.jit.mlp_ratio:g} is supported")
    return config
