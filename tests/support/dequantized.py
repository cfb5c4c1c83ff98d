"""The values of quantized layers in full, by the definition of each scheme."""

import torch
from torch import Tensor, nn

from asymflow.models.network import Quantization
from asymflow.models.quantized import import_bitsandbytes

SCHEMES: tuple[Quantization, ...] = ("nf4", "int8", "fp8")


def weight_in_full(layer: nn.Module, scheme: Quantization) -> Tensor:
    weight = layer.weight
    if scheme == "nf4":
        return import_bitsandbytes().functional.dequantize_4bit(weight.data, weight.quant_state)
    if scheme == "int8":
        scale = weight.SCB if weight.SCB is not None else layer.state.SCB  # where it is after a forward pass
        return weight.data.float() * scale[:, None] / 127
    assert weight.dtype == torch.float8_e4m3fn
    return weight.data.float()


def copy_in_full(layer: nn.Module, scheme: Quantization, target: nn.Linear) -> None:
    """Set the values of a linear layer to those that a quantized one computes with."""
    target.weight.data = weight_in_full(layer, scheme).to(target.weight.dtype)
    if layer.bias is not None:
        target.bias.data = layer.bias.data.to(target.weight.dtype)
