"""The released file's tensors in ComfyUI's naming, and back.

ComfyUI names the time embedding as in FLUX.1, and stores the last norm's shift before its scale; all else is the same.
Its samplers use the logarithm of the flow shift, which is in the file's metadata.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

_TIME, _COMFYUI_TIME = "time_guidance_embed.", "time_text_embed."
_LAST_NORM = "norm_out.linear.weight"


def to_comfyui(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors of the released file under ComfyUI's names.

    Args:
        tensors: Tensors by their names in the released file.

    Returns:
        Tensors by ComfyUI's names.
    """
    return _convert(tensors, _TIME, _COMFYUI_TIME)


def from_comfyui(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors of a ComfyUI file under the released names, the inverse of `to_comfyui`.

    Args:
        tensors: Tensors by ComfyUI's names.

    Returns:
        Tensors by their names in the released file.
    """
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
