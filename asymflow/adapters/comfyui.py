"""The released file's tensors in ComfyUI's naming, and back.

The time embedding has FLUX.1's name there, and the last norm's shift comes before its scale. All else is the same.
(Samplers there take the logarithm of the flow shift: it stands in the file's metadata.)
"""

from collections.abc import Mapping

import torch
from torch import Tensor

_TIME, _COMFYUI_TIME = "time_guidance_embed.", "time_text_embed."
_LAST_NORM = "norm_out.linear.weight"


def to_comfyui(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the released file -> the same under ComfyUI's names."""
    return _convert(tensors, _TIME, _COMFYUI_TIME)


def from_comfyui(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undoes `to_comfyui`."""
    return _convert(tensors, _COMFYUI_TIME, _TIME)


def _convert(tensors: Mapping[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    return {
        new + name.removeprefix(old) if name.startswith(old) else name: _halves_swapped(tensor)
        if name == _LAST_NORM
        else tensor
        for name, tensor in tensors.items()
    }


def _halves_swapped(tensor: Tensor) -> Tensor:
    return torch.cat(tuple(reversed(tensor.chunk(2))))
