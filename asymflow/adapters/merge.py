"""An adapter merged into its base: one model of the same cost as the latent one, with nothing that could be switched
off. LoRAs of styles can be put on top of it."""

import os
import re
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import Flux2Transformer2DModel
from torch import Tensor

from asymflow.adapters.basis import find_subspace
from asymflow.adapters.files import read_adapter, read_defaults
from asymflow.adapters.released import adapter_config, check_config, check_finite, check_shapes
from asymflow.models.adapted import LORA_TARGETS
from asymflow.models.pixel import TRAINED_WEIGHTS, AsymFlux2Transformer2DModel
from asymflow.subspace import Subspace

_LORA = re.compile(rf"({LORA_TARGETS})\.weight")


def load_merged(
    transformer: Flux2Transformer2DModel, folder: str | os.PathLike
) -> tuple[AsymFlux2Transformer2DModel, Subspace]:
    """The pixel model of an adapter's folder and its base, in the base's type, and the subspace (channel first).

    The transformer is taken over and changed. Raises ValueError for an adapter that is damaged or was made for another
    base; the transformer is then as it was.
    """
    tensors, config = read_adapter(folder)
    try:
        subspace = find_subspace(folder, tensors)
        check_config(config, adapter_config("asymflow", transformer.config, subspace))
        sampling = vars(read_defaults(folder))
        return merge(transformer, tensors, subspace, config["sigma_min"], sampling), subspace
    except ValueError as error:
        raise ValueError(f"the adapter in {folder} does not fit the base: {error}") from None


@torch.no_grad()
def merge(
    transformer: Flux2Transformer2DModel,
    tensors: Mapping[str, Tensor],
    subspace: Subspace,
    sigma_floor_sample: float = 1e-4,
    sampling: Mapping[str, Any] | None = None,
) -> AsymFlux2Transformer2DModel:
    """W + B A in place of each W with LoRA, computed in float32, and the trained layers in place of the lifted ones.

    `tensors` are named as in the released file; `sampling` is what `read_defaults` returns. Raises ValueError for
    missing or other tensors, other shapes, or values that are not finite, before anything is changed.
    """
    weights = dict(transformer.named_parameters())
    check_shapes({name: t.shape for name, t in tensors.items()}, expected_shapes(weights, tensors, subspace))
    check_finite(tensors)
    for name, weight in weights.items():
        down, up = (tensors.get(f"{name.removesuffix('.weight')}.lora_{half}.weight") for half in "AB")
        if down is not None and up is not None:
            change = up.to(weight.device, torch.float32) @ down.to(weight.device, torch.float32)
            weight.copy_(weight.float() + change)
    trained = {name: tensors[name] for name in TRAINED_WEIGHTS}
    return AsymFlux2Transformer2DModel.from_latent(transformer, subspace, sigma_floor_sample, trained, sampling)


def expected_shapes(
    weights: Mapping[str, Tensor], tensors: Mapping[str, Tensor], subspace: Subspace
) -> dict[str, torch.Size]:
    """Those of the file's tensors for a base with these weights, with LoRA of the file's rank, or without."""
    width = weights["x_embedder.weight"].shape[0]
    shapes = {
        "x_embedder.weight": torch.Size([width, subspace.patch_dim]),
        "proj_out.weight": torch.Size([subspace.patch_dim, width]),
        "norm_out.linear.weight": weights["norm_out.linear.weight"].shape,
        "proj_buffer": subspace.A.shape,
        "scale_buffer": torch.Size([]),
    }
    ranks = [tensor.shape[0] for name, tensor in tensors.items() if name.endswith(".lora_A.weight")]
    for name, weight in weights.items() if ranks else ():
        if _LORA.fullmatch(name):
            layer, (outputs, inputs) = name.removesuffix(".weight"), weight.shape
            shapes[f"{layer}.lora_A.weight"] = torch.Size([ranks[0], inputs])
            shapes[f"{layer}.lora_B.weight"] = torch.Size([outputs, ranks[0]])
    return shapes
