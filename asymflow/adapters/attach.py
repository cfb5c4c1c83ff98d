"""Adapter attached to its base without merging: LoRA stays LoRA, through peft.

The base's weights are not changed, so they may be quantized. Tested with bitsandbytes' NF4, with weights stored in
float8, and with GGUF files.
"""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from asymflow.adapters.merge import expected_shapes, load_onto
from asymflow.adapters.released import check_finite, check_shapes
from asymflow.models.geometry import LORA_TARGETS
from asymflow.subspace import Subspace

if TYPE_CHECKING:  # reading an adapter's files does without diffusers
    from diffusers import Flux2Transformer2DModel

    from asymflow.models.pixel import AsymFlux2Transformer2DModel


def load_attached(
    transformer: "Flux2Transformer2DModel", folder: str | os.PathLike
) -> tuple["AsymFlux2Transformer2DModel", Subspace]:
    """Load an adapter's folder and attach it to its base.

    Args:
        transformer: The latent transformer, quantized or not. The model keeps and changes it; on an error it is
            unchanged.
        folder: Folder of the adapter.

    Returns:
        The pixel model, whose LoRA is the adapter named ATTACHED, and the subspace (channel first).

    Raises:
        ValueError: If the adapter is damaged or was made for another base.
    """
    return load_onto(transformer, folder, attach)


@torch.no_grad()
def attach(
    transformer: "Flux2Transformer2DModel",
    tensors: Mapping[str, Tensor],
    subspace: Subspace,
    sigma_floor_sample: float = 1e-4,
    sampling: Mapping[str, Any] | None = None,
) -> "AsymFlux2Transformer2DModel":
    """Return the pixel model with the trained first and last layers, and LoRA beside the base's weights.

    LoRA and the trained layers have the type that the base computes in; A and s are float32.

    Args:
        transformer: The latent transformer, quantized or not. The model keeps and changes it; on an error it is
            unchanged.
        tensors: Tensors by their names in the released file.
        subspace: Subspace of the model, channel first.
        sigma_floor_sample: Lower bound of sigma in the recovery.
        sampling: Fields of `SamplingDefaults`.

    Returns:
        The pixel model, in evaluation mode.

    Raises:
        ValueError: If tensors are missing or unknown, have another shape, or are not finite.
    """
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer

    from asymflow.models.pixel import ATTACHED, TRAINED_WEIGHTS, AsymFlux2Transformer2DModel

    layers = {name: module for name, module in transformer.named_modules() if isinstance(module, nn.Linear)}
    # not the weights' own shapes: those of quantized ones are packed
    weights = {
        f"{name}.weight": torch.empty(layer.out_features, layer.in_features, device="meta")
        for name, layer in layers.items()
    }
    shapes = expected_shapes(weights, tensors, subspace)
    check_shapes({name: tensor.shape for name, tensor in tensors.items()}, shapes)
    check_finite(tensors)
    trained = {name: tensors[name] for name in TRAINED_WEIGHTS}
    model = AsymFlux2Transformer2DModel.on_modules_of(transformer, subspace, trained, sigma_floor_sample, sampling)
    ranks = [tensor.shape[0] for name, tensor in tensors.items() if name.endswith(".lora_A.weight")]
    if ranks:
        rank = ranks[0]
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=LORA_TARGETS, init_lora_weights=False)
        model.add_adapter(config, adapter_name=ATTACHED)
        for name, layer in model.named_modules():
            if isinstance(layer, LoraLayer):
                for half, own in (("A", layer.lora_A), ("B", layer.lora_B)):
                    linear = own[ATTACHED]
                    value = tensors[f"{name}.lora_{half}.weight"]
                    linear.weight = nn.Parameter(value.to(transformer.device, model.dtype), requires_grad=False)
    return model.eval()
