"""Layers whose parameters stay in float32 and whose products are made in the type of their input.

bfloat16 keeps 8 bits of a number: an update smaller than 1/256 of a weight would be lost in it. So what is trained is
kept in float32 (the "master"), as the moments of Adam are, and rounded anew in each forward pass. Activations and
products stay in the type of the frozen base, and the gradient arrives in float32, where it is accumulated.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class MasterLinear(nn.Linear):
    """nn.Linear that answers in the type of its input (..., in_features)."""

    def forward(self, input: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return F.linear(input, self.weight.to(input.dtype), bias)


class MasterRMSNorm(nn.RMSNorm):
    """nn.RMSNorm that answers in the type of its input."""

    def forward(self, x: Tensor) -> Tensor:
        weight = None if self.weight is None else self.weight.to(x.dtype)
        return F.rms_norm(x, self.normalized_shape, weight, self.eps)


_MASTERS: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: MasterLinear, nn.RMSNorm: MasterRMSNorm}


def make_masters(module: nn.Module) -> None:
    """Turn each layer inside `module` that has parameters into its master, in place; names and values stay.

    Raises:
        TypeError: a layer of another class has parameters.
    """
    for layer in module.modules():
        if type(layer) in _MASTERS:
            layer.__class__ = _MASTERS[type(layer)]
        elif type(layer) not in _MASTERS.values() and next(layer.parameters(recurse=False), None) is not None:
            raise TypeError(f"{type(layer).__name__} has parameters and no master: known are Linear and RMSNorm")
