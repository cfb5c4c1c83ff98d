"""What is evaluated: an adapter, wherever it is, with its base; and what it came from."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch

from asymflow.adapters import SamplingDefaults, kind_of, read_adapter, read_defaults
from asymflow.adapters.basis import LAYOUT, SUBSPACE, find_subspace, in_layout
from asymflow.content import content_of
from asymflow.metrics.protocol import fingerprint
from asymflow.outside_text import read_json_object
from asymflow.subspace import Subspace
from pipelines.core import storage
from pipelines.core.artifacts import Artifact
from pipelines.core.config import ConfigError
from pipelines.data.basis.step import load_subspace
from pipelines.sample.sampler import ImageSampler, adapter_files, load_sampler, weights_sha256


@dataclass(frozen=True)
class EvaluatedModel:
    """One adapter on its base, and the models that come with it."""

    base: str
    adapter: str
    """Folder, S3 URI or repository that every node can read; empty: a merged pipeline, or no trained model"""
    subspace: str
    """URI of a file, channel first, of the pixel model's subspace; empty: none is known"""
    defaults: SamplingDefaults
    parts: Mapping[str, str] = field(default_factory=dict)
    """What it is made of, by content: base, adapter, subspace; and how its prompts are padded"""
    lineage: Mapping[str, str] = field(default_factory=dict)
    """Where it came from, for MLflow's tags"""

    def identity(self, model: str) -> dict[str, str]:
        """What decides a model's images, and no more: latent models of two adapters are one."""
        shared = ("base", "subspace", "text_padding")
        needed = (*shared, "adapter") if model == "trained" else shared
        return {"model": model, **{name: self.parts[name] for name in needed if name in self.parts}}

    def painter(self, model: str, device: str) -> ImageSampler:
        subspace = storage.read_file(self.subspace, Subspace.load) if self.subspace else None
        with adapter_files(self.adapter if model == "trained" else "") as folder:
            return load_sampler(model, self.base, folder, subspace, self.defaults, device)


def read_evaluated_model(
    base: str, adapter: str, basis: Artifact | None, lineage: Mapping[str, str], folder_for_subspace: str
) -> EvaluatedModel:
    """The subspace is written into a folder that every node can read. Raises ConfigError for files that are missing or
    unsound."""
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
    place, parts["text_padding"] = "", defaults.text_padding
    if subspace is not None:
        place = storage.join(folder_for_subspace, SUBSPACE)
        storage.write_file(place, subspace.save)
        values = torch.cat([subspace.A.double().flatten(), torch.tensor([subspace.s], dtype=torch.float64)])
        parts["subspace"] = hashlib.sha256(values.numpy().tobytes()).hexdigest()[:16]
    return EvaluatedModel(storage.absolute(base), adapter, place, defaults, parts, lineage)


def _pipeline_defaults(base: str) -> SamplingDefaults:
    """A merged pipeline's own: its transformer's, unless its model_index.json says otherwise; the released model's for
    what both leave out."""
    index = read_json_object(Path(base) / "model_index.json")
    own = read_json_object(Path(base) / "transformer" / "config.json").get("sampling") or {}
    given = {name: value for name, value in index.items() if value is not None}
    names = {f.name for f in fields(SamplingDefaults)}
    return SamplingDefaults(**{name: value for name, value in {**own, **given}.items() if name in names})
