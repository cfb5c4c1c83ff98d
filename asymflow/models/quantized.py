"""Frozen linear layers in 4 bits: NF4 with double quantization (QLoRA, Dettmers et al. 2023), by bitsandbytes.

A weight is a 4-bit index into 16 fixed values, times the largest magnitude of its block of 64. These scales are stored
in 8 bits, with a float32 scale per 256 of them. Each use of a layer dequantizes its weight to the layer's type and
multiplies in that type.
"""

import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import torch
from torch import nn

from asymflow.models.network import NF4_BLOCK


def import_bitsandbytes() -> ModuleType:
    """Return bitsandbytes, also where it is hidden from peft, which would import it at each start.

    Returns:
        The package.
    """
    if sys.modules.get("bitsandbytes", sys) is None:
        del sys.modules["bitsandbytes"]
    import bitsandbytes

    return bitsandbytes


def quantize_linears(model: nn.Module, names: Iterable[str], device: torch.device | str | None = None) -> None:
    """Replace linear layers by quantized ones, in place; biases and the type of the products stay.

    Args:
        model: The model; the layers are frozen, and their weights are on any device but `meta`.
        names: Names of nn.Linear layers whose inputs are a multiple of NF4_BLOCK.
        device: Device on which weights are quantized and stay, much faster on a GPU; None: where they are.
    """
    bnb = import_bitsandbytes()
    for name in names:
        layer: Any = model.get_submodule(name)
        weight, bias = layer.weight.detach(), layer.bias
        quantized = bnb.nn.Linear4bit(
            layer.in_features, layer.out_features, bias is not None, compute_dtype=weight.dtype, device="meta"
        )
        kept = bnb.nn.Params4bit(
            weight, blocksize=NF4_BLOCK, compress_statistics=True, quant_type="nf4", module=quantized
        )
        quantized.weight = kept.to(device or weight.device)
        quantized.bias = bias
        # in evaluation mode, some CPUs' kernels would repack the weight in place, with scales rounded once more
        quantized.support_avx512bf16_for_cpu = False
        model.set_submodule(name, quantized.train(layer.training))
