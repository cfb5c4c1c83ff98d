"""Mixed precision: layers whose parameters stay in float32 and whose products have the type of their input.

bfloat16 stores 8 bits of a number, so updates smaller than 1/256 of a weight would be lost. Trained parameters are
therefore stored in float32 (master weights), as the moments of Adam are, and rounded in each forward pass. Activations
and products keep the type of the frozen base; the gradient is accumulated in float32.
"""

import torch.nn.functional as F
from diffusers.models.normalization import RMSNorm
from torch import Tensor, nn


class MasterLinear(nn.Linear):
    """nn.Linear with float32 master weights whose output has the type of its input."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer in the type of its input.

        Args:
            input: Values (..., in_features).

        Returns:
            Values (..., out_features), of the same dtype.
        """
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return F.linear(input, self.weight.to(input.dtype), bias)


class MasterRMSNorm(nn.RMSNorm):
    """nn.RMSNorm with float32 master weights whose output has the type of its input."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer in the type of its input.

        Args:
            x: Values (..., *normalized_shape).

        Returns:
            Values of the same shape and dtype.
        """
        weight = None if self.weight is None else self.weight.to(x.dtype)
        return F.rms_norm(x, self.normalized_shape, weight, self.eps)


class MasterDiffusersRMSNorm(RMSNorm):
    """RMSNorm of diffusers with float32 master weights whose output has the type of its input."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Apply the layer in float32.

        Args:
            hidden_states: Values (..., *dim).

        Returns:
            Values of the same shape and dtype.
        """
        return super().forward(hidden_states).to(hidden_states.dtype)


class MasterConv2d(nn.Conv2d):
    """nn.Conv2d with float32 master weights whose output has the type of its input."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply the layer in the type of its input.

        Args:
            input: Images (B, in_channels, H, W).

        Returns:
            Images (B, out_channels, H, W), of the same dtype.
        """
        bias = None if self.bias is None else self.bias.to(input.dtype)
        return self._conv_forward(input, self.weight.to(input.dtype), bias)


_MASTER_CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: MasterLinear,
    nn.RMSNorm: MasterRMSNorm,
    RMSNorm: MasterDiffusersRMSNorm,
    nn.Conv2d: MasterConv2d,
}


def use_master_weights(module: nn.Module) -> None:
    """Give each layer inside a module that has parameters master weights, in place; names and values stay.

    Args:
        module: The module.

    Raises:
        TypeError: If a layer of another class has parameters.
    """
    for layer in module.modules():
        if type(layer) in _MASTER_CLASSES:
            layer.__class__ = _MASTER_CLASSES[type(layer)]
        elif type(layer) not in _MASTER_CLASSES.values() and next(layer.parameters(recurse=False), None) is not None:
            known = ", ".join(cls.__name__ for cls in _MASTER_CLASSES)
            raise TypeError(f"{type(layer).__name__} has parameters; master weights exist for {known}")
