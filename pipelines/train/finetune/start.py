"""Basis of a finetune, and the adapter that it starts from instead of the base alone.

What loads models is imported where it is used: a cached artifact does not need it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from asymflow.subspace import Subspace
from pipelines.core import storage
from pipelines.core.artifacts import Artifact
from pipelines.core.config import ConfigError, read_json_setting
from pipelines.data.basis.step import load_subspace
from pipelines.train.finetune.config import FinetuneSettings

if TYPE_CHECKING:
    from asymflow.models.adapted import AdaptedModel


def find_basis(settings: FinetuneSettings, inputs: Mapping[str, Artifact]) -> Subspace:
    """Return the subspace of the basis artifact, or without one that of `start_from`.

    Raises:
        ConfigError: The adapter cannot be read, or has no subspace.
    """
    if "basis" in inputs:
        return load_subspace(inputs["basis"])
    from asymflow.adapters import read_adapter
    from asymflow.adapters.basis import find_subspace, in_layout

    with _open_start(settings) as folder:
        return in_layout(find_subspace(folder, read_adapter(folder)[0]), settings.pixels.layout)


def basis_file(settings: FinetuneSettings, inputs: Mapping[str, Artifact], folder: str) -> str:
    """Return the URI of the subspace's file for the workers; that of `start_from` is written to `folder`."""
    if "basis" in inputs:
        return inputs["basis"].file("subspace.safetensors")
    uri = storage.join(folder, "subspace.safetensors")
    storage.write_file(uri, find_basis(settings, inputs).save)
    return uri


def check_start(settings: FinetuneSettings, subspace: Subspace) -> None:
    """Check that `start_from` has the kind, LoRA rank, basis and layers of the model to train.

    Raises:
        ConfigError: It does not, or it cannot be read.
    """
    from asymflow.adapters import kind_of, load_adapter, read_adapter
    from asymflow.adapters.basis import LAYOUT, differing_buffer, in_layout

    with _open_start(settings) as folder:
        tensors, config = read_adapter(folder)
        if (kind := kind_of(config)) != settings.model:
            raise ValueError(f"it is an adapter of model={kind}, but model={settings.model}")
        ranks = {tensor.shape[0] for name, tensor in tensors.items() if name.endswith(".lora_A.weight")}
        own = min(ranks, default=None)
        if own != (rank := settings.lora.rank if settings.lora else None):
            setting = f"lora.rank={own}" if own else "lora=null"
            raise ValueError(f"its LoRA has rank {own}, but lora.rank={rank}; set {setting}")
        comparable = "scale_buffer" in tensors and getattr(tensors.get("proj_buffer"), "shape", 0) == subspace.A.shape
        if comparable and differing_buffer(in_layout(subspace, LAYOUT), tensors):
            raise ValueError(f"it was trained with another basis than basis={settings.basis!r}; leave basis empty")
        load_adapter(_empty_model(settings, subspace), folder)


def _empty_model(settings: FinetuneSettings, subspace: Subspace) -> "AdaptedModel":
    """Return the model to train without values, on the device `meta`, from the base's settings alone."""
    import diffusers
    import torch

    from asymflow.models.latent import backbone_of_config
    from pipelines.train.finetune.model import adapt

    config = read_json_setting(Path(settings.base) / "transformer" / "config.json", f"base={settings.base!r}")
    transformer = getattr(diffusers, backbone_of_config(config).transformer)
    with torch.device("meta"):
        return adapt(settings, transformer.from_config(config), subspace)


@contextmanager
def _open_start(settings: FinetuneSettings) -> Iterator[Path]:
    """Yield the local folder of `start_from`; an error about its content becomes a ConfigError."""
    from pipelines.sample.adapter_files import adapter_files

    try:
        with adapter_files(settings.start_from) as folder:
            yield folder or Path()
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(f"start_from={settings.start_from!r}: {error}") from None
