"""The evaluated model: an adapter with its base, and its lineage."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from asymflow.adapters import SamplingDefaults, kind_of, read_adapter, read_defaults
from asymflow.adapters.basis import LAYOUT, SUBSPACE, find_subspace, in_layout
from asymflow.content import content_of
from asymflow.metrics.protocol import fingerprint
from asymflow.subspace import Subspace
from asymflow.text_files import read_json_object
from pipelines.core import storage
from pipelines.core.artifacts import Artifact
from pipelines.core.config import ConfigError
from pipelines.data.basis.step import load_subspace
from pipelines.sample.adapter_files import adapter_files, weights_sha256

if TYPE_CHECKING:  # only the workers load models
    from pipelines.sample.sampler import ImageSampler


@dataclass(frozen=True)
class EvaluatedModel:
    """One adapter on its base, with the untrained and the latent model."""

    base: str
    adapter: str
    """Folder, S3 URI or repository that every node can read; empty: a merged pipeline, or no trained model"""
    subspace: str
    """URI of the pixel model's subspace, channel first; empty: unknown"""
    defaults: SamplingDefaults
    parts: Mapping[str, str] = field(default_factory=dict)
    """Content hashes of base, adapter and subspace, and the padding of prompts"""
    lineage: Mapping[str, str] = field(default_factory=dict)
    """Origin of the adapter, for MLflow's tags"""

    def identity(self, model: str) -> dict[str, str]:
        """Return what determines a model's images: latent models of two adapters have the same identity."""
        shared = ("base", "subspace", "text_padding")
        needed = (*shared, "adapter") if model == "trained" else shared
        return {"model": model, **{name: self.parts[name] for name in needed if name in self.parts}}

    def sampler(self, model: str, device: str) -> "ImageSampler":
        """Return the sampler of a model."""
        from pipelines.sample.sampler import load_sampler

        subspace = storage.read_file(self.subspace, Subspace.load) if self.subspace else None
        with adapter_files(self.adapter if model == "trained" else "") as folder:
            return load_sampler(model, self.base, folder, subspace, self.defaults, device)


def read_evaluated_model(
    base: str, adapter: str, basis: Artifact | None, lineage: Mapping[str, str], folder_for_subspace: str
) -> EvaluatedModel:
    """Return the evaluated model of an adapter; its subspace is written to a folder that every node can read.

    Args:
        base: folder of the latent model.
        adapter: folder, S3 URI or repository; empty for none.
        basis: basis artifact, for models whose adapter has no subspace.
        lineage: origin of the adapter.
        folder_for_subspace: folder of the subspace's file.

    Raises:
        ConfigError: files are missing or damaged.
    """
    try:
        with adapter_files(adapter) as folder:
            subspace = None if basis is None else in_layout(load_subspace(basis), LAYOUT)
            parts = {"base": content_of(base)}
            defaults = SamplingDefaults()
            if folder is None:
                defaults = _pipeline_defaults(base)
            else:
                tensors, config = read_adapter(folder)
                if kind_of(config) != "latent":
                    subspace = find_subspace(folder, tensors)
                defaults = read_defaults(folder)
                parts["adapter"] = fingerprint({"weights": weights_sha256(folder), "config": config})
    except ValueError as error:
        raise ConfigError(f"adapter={adapter!r}: {error}") from None
    subspace_file, parts["text_padding"] = "", defaults.text_padding
    if subspace is not None:
        subspace_file = storage.join(folder_for_subspace, SUBSPACE)
        storage.write_file(subspace_file, subspace.save)
        values = torch.cat([subspace.A.double().flatten(), torch.tensor([subspace.s], dtype=torch.float64)])
        parts["subspace"] = hashlib.sha256(values.numpy().tobytes()).hexdigest()[:16]
    return EvaluatedModel(storage.absolute(base), adapter, subspace_file, defaults, parts, lineage)


def _pipeline_defaults(base: str) -> SamplingDefaults:
    """Return a merged pipeline's default sampling parameters.

    They are its transformer's, overridden by its model_index.json; the released model's where both have none.
    """
    index = read_json_object(Path(base) / "model_index.json")
    own = read_json_object(Path(base) / "transformer" / "config.json").get("sampling") or {}
    given = {name: value for name, value in index.items() if value is not None}
    names = {f.name for f in fields(SamplingDefaults)}
    return SamplingDefaults(**{name: value for name, value in {**own, **given}.items() if name in names})
