"""A finetuned model of any kind as our own classes have it, from its adapter's folder: for the baselines, which have no
pipeline of diffusers."""

import os

import torch
from diffusers import Flux2Transformer2DModel

from asymflow.adapters.basis import find_subspace
from asymflow.adapters.files import read_adapter
from asymflow.adapters.released import CLASS_NAMES, CLASSES, Kind, load_adapter
from asymflow.models.adapted import AdaptedFlux2
from asymflow.subspace import Subspace


def kind_of(config: dict) -> Kind:
    """Of an adapter's config.json. Raises ValueError for a class that is none of ours."""
    found = config.get("_class_name")
    kinds = [kind for kind, name in CLASS_NAMES.items() if name == found]
    if not kinds:
        raise ValueError(f"its config.json names {found!r}; known: {', '.join(CLASS_NAMES.values())}")
    return kinds[0]


def restore(
    transformer: Flux2Transformer2DModel, folder: str | os.PathLike, subspace: Subspace | None = None
) -> AdaptedFlux2:
    """The model of an adapter's folder on its base, ready to sample from. The transformer is taken over and changed.

    `subspace` is needed where the folder has none of its own: for the latent baseline.

    Raises:
        ValueError: files are missing, or were made for another base.
    """
    tensors, config = read_adapter(folder)
    kind = kind_of(config)
    if kind != "latent":
        subspace = find_subspace(folder, tensors)
    elif subspace is None:
        raise ValueError(f"the adapter in {folder} is of a latent model, which has no subspace: give one")
    model = CLASSES[kind].from_latent(transformer, subspace, **config.get("head", {}))  # type: ignore[attr-defined]
    ranks = [tensor.shape[0] for name, tensor in tensors.items() if name.endswith(".lora_A.weight")]
    if ranks:
        model.add_lora(ranks[0], ranks[0], dropout=0.0)
    with torch.no_grad():
        load_adapter(model, folder)
    return model.eval()
