"""Adapter merged into its base: one model of the same cost as the latent one.

The adapter cannot be switched off by accident, and LoRAs of styles can be added on top.
"""

import os
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from asymflow.adapters.basis import find_subspace
from asymflow.adapters.files import read_adapter, read_defaults
from asymflow.adapters.released import adapter_config, check_config, check_finite, check_shapes
from asymflow.models.geometry import LORA_TARGETS
from asymflow.subspace import Subspace

if TYPE_CHECKING:  # reading an adapter's files does without diffusers
    from diffusers import Flux2Transformer2DModel

    from asymflow.models.pixel import AsymFlux2Transformer2DModel

_LORA = re.compile(rf"({LORA_TARGETS})\.weight")


def load_merged(
    transformer: "Flux2Transformer2DModel", folder: str | os.PathLike
) -> tuple["AsymFlux2Transformer2DModel", Subspace]:
    """Load an adapter's folder and merge it into its base.

    Args:
        transformer: The latent transformer. The model keeps and changes it; on an error it is unchanged.
        folder: Folder of the adapter.

    Returns:
        The pixel model, in the base's type, and the subspace (channel first).

    Raises:
        ValueError: If the adapter is damaged or was made for another base.
    """
    return load_onto(transformer, folder, merge)


def load_onto(
    transformer: "Flux2Transformer2DModel",
    folder: str | os.PathLike,
    join: Callable[..., "AsymFlux2Transformer2DModel"],
) -> tuple["AsymFlux2Transformer2DModel", Subspace]:
    """Load an adapter's folder, check that it fits a base, and join the two.

    Args:
        transformer: The latent transformer.
        folder: Folder of the adapter.
        join: `merge`, or a function with the same arguments.

    Returns:
        The result of `join`, and the subspace (channel first).

    Raises:
        ValueError: If the adapter is damaged or was made for another base.
    """
    tensors, config = read_adapter(folder)
    try:
        subspace = find_subspace(folder, tensors)
        check_config(config, adapter_config("asymflow", transformer.config, subspace))
        sampling = vars(read_defaults(folder))
        return join(transformer, tensors, subspace, config["sigma_min"], sampling), subspace
    except ValueError as error:
        raise ValueError(f"the adapter in {folder} does not fit the base: {error}") from None


@torch.no_grad()
def merge(
    transformer: "Flux2Transformer2DModel",
    tensors: Mapping[str, Tensor],
    subspace: Subspace,
    sigma_floor_sample: float = 1e-4,
    sampling: Mapping[str, Any] | None = None,
) -> "AsymFlux2Transformer2DModel":
    """Return the pixel model: W + B A for each weight W with LoRA, in float32, and the trained first and last layers.

    Args:
        transformer: The latent transformer. The model keeps and changes it; on an error it is unchanged.
        tensors: Tensors by their names in the released file.
        subspace: Subspace of the model, channel first.
        sigma_floor_sample: Lower bound of sigma in the recovery.
        sampling: Fields of `SamplingDefaults`.

    Returns:
        The pixel model, in the base's type.

    Raises:
        ValueError: If the transformer is quantized, or tensors are missing or unknown, have another shape, or are not
            finite.
    """
    from asymflow.models.pixel import TRAINED_WEIGHTS, AsymFlux2Transformer2DModel

    weights = dict(transformer.named_parameters())
    if getattr(transformer, "hf_quantizer", None) or not all(w.is_floating_point() for w in weights.values()):
        raise ValueError("it is quantized, and an adapter is merged into full weights: attach it, or give a full base")
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
    """Return the shapes of an adapter's tensors for a base.

    Args:
        weights: Parameters of the base by name.
        tensors: Tensors of the adapter; the rank of LoRA, if any, is read from them.
        subspace: Subspace of the model.

    Returns:
        Shapes by the names in the released file.
    """
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
