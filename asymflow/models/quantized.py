"""Frozen linear layers in 4 or 8 bits, under trained LoRA.

- nf4: NF4 with double quantization (QLoRA, Dettmers et al. 2023), by bitsandbytes. A weight is a 4-bit index into 16
  fixed values, times the largest magnitude of its block of 64. These scales are stored in 8 bits, with a float32 scale
  per 256 of them.
- int8: LLM.int8 (Dettmers et al. 2022), by bitsandbytes. A weight is an integer times the largest magnitude of its row
  over 127. The inputs of a layer are rounded to 8 bits too, except for features of large magnitude, and except in
  training on a CPU.
- fp8: float8_e4m3fn without scales, by the layerwise casting of diffusers, biases included. The backward pass needs the
  weights of a forward pass in full, so blocks are to be recomputed (gradient checkpointing).

Each use of a layer restores its weight to the layer's type and multiplies in that type, except where stated.
"""

import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import torch
from diffusers.hooks import apply_layerwise_casting
from torch import nn

from asymflow.models.network import NF4_BLOCK, Quantization

LARGE_FEATURE = 6.0
"""Magnitude from which on LLM.int8 multiplies a feature in half precision, as the paper"""


def import_bitsandbytes() -> ModuleType:
    """Return bitsandbytes, also where it is hidden from peft, which would import it at each start.

    Returns:
        The package.
    """
    if sys.modules.get("bitsandbytes", sys) is None:
        del sys.modules["bitsandbytes"]
    import bitsandbytes

    return bitsandbytes


def quantize_linears(
    model: nn.Module, names: Iterable[str], device: torch.device | str | None = None, scheme: Quantization = "nf4"
) -> None:
    """Replace linear layers by quantized ones, in place; the type of their outputs stays.

    Args:
        model: The model; the layers are frozen, and their weights are on any device but `meta`.
        names: Names of nn.Linear layers whose inputs are a multiple of NF4_BLOCK.
        device: Device on which weights are quantized and stay, much faster on a GPU; None: where they are.
        scheme: How weights are stored.
    """
    quantize = {"nf4": _nf4, "int8": _int8, "fp8": _fp8}[scheme]
    for name in names:
        layer: Any = model.get_submodule(name)
        model.set_submodule(name, quantize(layer, device or layer.weight.device).train(layer.training))


def _nf4(layer: nn.Linear, device: torch.device | str) -> nn.Module:
    bnb = import_bitsandbytes()
    weight = layer.weight.detach()
    quantized = bnb.nn.Linear4bit(
        layer.in_features, layer.out_features, layer.bias is not None, compute_dtype=weight.dtype, device="meta"
    )
    kept = bnb.nn.Params4bit(weight, blocksize=NF4_BLOCK, compress_statistics=True, quant_type="nf4", module=quantized)
    quantized.weight, quantized.bias = kept.to(device), layer.bias
    # in evaluation mode, some CPUs' kernels would repack the weight in place, with scales rounded once more
    quantized.support_avx512bf16_for_cpu = False
    return quantized


def _int8(layer: nn.Linear, device: torch.device | str) -> nn.Module:
    bnb = import_bitsandbytes()
    quantized = bnb.nn.Linear8bitLt(
        layer.in_features, layer.out_features, layer.bias is not None, has_fp16_weights=False,
        threshold=LARGE_FEATURE, device="meta",
    )  # fmt: skip
    kept = bnb.nn.Int8Params(layer.weight.detach(), requires_grad=False, has_fp16_weights=False)
    quantized.weight, quantized.bias = kept.to(device), layer.bias
    return quantized


def _fp8(layer: nn.Linear, device: torch.device | str) -> nn.Module:
    apply_layerwise_casting(layer.to(device), torch.float8_e4m3fn, layer.weight.dtype, skip_modules_pattern=None)
    return layer
