"""Finetuned models of any kind as our own classes, from an adapter's folder.

The baselines need it, since they have no diffusers pipeline.
"""

import os
from typing import TYPE_CHECKING, Any

import torch

from asymflow.adapters.basis import find_subspace
from asymflow.adapters.files import read_adapter
from asymflow.adapters.released import load_adapter, model_classes
from asymflow.models.backbone import Kind
from asymflow.models.latent import families
from asymflow.subspace import Subspace

if TYPE_CHECKING:
    from asymflow.models.adapted import AdaptedModel


def kind_of(config: dict) -> Kind:
    """Return the kind of model of an adapter.

    Args:
        config: Content of the adapter's config.json.

    Returns:
        The kind.

    Raises:
        ValueError: If the class is unknown.
    """
    found = config.get("_class_name")
    classes = [family.backbone.adapter_classes for family in families()]
    kinds: dict[str, Kind] = {name: kind for names in classes for kind, name in names.items()}
    if found not in kinds:
        raise ValueError(f"its config.json names {found!r}; known: {', '.join(kinds)}")
    return kinds[found]


def restore(transformer: Any, folder: str | os.PathLike, subspace: Subspace | None = None) -> "AdaptedModel":
    """Return the model of an adapter's folder on its base, ready to sample from.

    Args:
        transformer: The latent transformer. The model keeps and changes it.
        folder: Folder of the adapter.
        subspace: Subspace of the teacher, needed for the latent baseline, whose folder has none.

    Returns:
        The model, in evaluation mode.

    Raises:
        ValueError: If files are missing, or were made for another base.
    """
    tensors, config = read_adapter(folder)
    kind = kind_of(config)
    if kind != "latent":
        subspace = find_subspace(folder, tensors)
    elif subspace is None:
        raise ValueError(f"the adapter in {folder} is for a latent model, which has no subspace: give one")
    model: Any = model_classes()[kind]
    model = model.from_latent(transformer, subspace, **config.get("head", {}))
    ranks = [tensor.shape[0] for name, tensor in tensors.items() if name.endswith(".lora_A.weight")]
    if ranks:
        model.add_lora(ranks[0], ranks[0], dropout=0.0)
    with torch.no_grad():
        load_adapter(model, folder)
    return model.eval()
