"""The subspace that an adapter was made with: beside it in full precision, or else its own rounded buffers."""

import logging
import os
import pickle
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asymflow.oklab import RELEASED, OklabSpace
from asymflow.patches import layout_order
from asymflow.subspace import Subspace

LOGGER = logging.getLogger(__name__)
LAYOUT = "channel_first"
"""Of every file"""
SUBSPACE = "subspace.safetensors"
_ANOTHER, _ROUNDING = 1e-3, 2**-8
"""Largest difference to buffers rounded to bfloat16, absolute and relative to an entry (those of small patches are
large) or to the scale; another basis is 0.1 off"""


def find_subspace(folder: str | os.PathLike, tensors: Mapping[str, Tensor]) -> Subspace:
    """The subspace of the adapter `tensors` in `folder`, channel first.

    It is `subspace.safetensors`, a `.pth` of the released form, or the tensors' own buffers, made orthonormal again.
    The last two carry no colour space: it is the released one's. Raises ValueError where none is sound, or where the
    one that stands beside the file is another than it was made with.
    """
    folder = Path(folder)
    missing = [name for name in ("proj_buffer", "scale_buffer") if name not in tensors]
    if missing:
        raise ValueError(f"the adapter in {folder} lacks {' and '.join(missing)}: it is no AsymFlow adapter")
    pths = sorted(folder.glob("*.pth"))
    if (folder / SUBSPACE).is_file():
        subspace = in_layout(Subspace.load(folder / SUBSPACE), LAYOUT)
    elif len(pths) > 1:
        raise ValueError(f"which of {', '.join(p.name for p in pths)} in {folder} is the subspace? Leave one")
    elif pths:
        subspace = load_pth(pths[0])
    else:
        LOGGER.info("%s has no %s: taking its bfloat16 buffers and the released colour space", folder, SUBSPACE)
        return from_buffers(tensors["proj_buffer"], tensors["scale_buffer"])
    if name := differing_buffer(subspace, tensors):
        raise ValueError(f"the subspace in {folder} is another than the adapter beside it was made with: see {name}")
    return subspace


def differing_buffer(subspace: Subspace, tensors: Mapping[str, Tensor]) -> str | None:
    """Return the buffer of an adapter that belongs to another subspace, or None.

    Buffers are rounded to a half-precision type, and a subspace may itself have been made of rounded ones: equal means
    equal but for that.

    Args:
        subspace: in the packing of the tensors.
        tensors: with `proj_buffer` (D, r) and `scale_buffer` () in any float type.
    """
    A, s = tensors["proj_buffer"].cpu().float(), float(tensors["scale_buffer"])
    own = subspace.A.cpu().float()
    if A.shape != own.shape or not torch.allclose(A, own, atol=_ANOTHER, rtol=_ROUNDING):  # nan differs
        return "proj_buffer"
    return None if abs(s - subspace.s) <= _ROUNDING * subspace.s else "scale_buffer"


def from_buffers(A: Tensor, s: Tensor, space: OklabSpace = RELEASED) -> Subspace:
    """From A (D, r) rounded to bfloat16, 7e-4 off in A^T A: the nearest orthonormal matrix, U V^T of its SVD.

    Raises ValueError for what is far from orthonormal or not finite."""
    if A.ndim != 2 or A.shape[0] < A.shape[1] or s.numel() != 1:
        raise ValueError(f"proj_buffer is {list(A.shape)} and scale_buffer {list(s.shape)}: no basis and scale")
    wide = A.double()
    if not torch.isfinite(wide).all():
        raise ValueError("proj_buffer holds NaN or infinite values")
    left, values, right = torch.linalg.svd(wide, full_matrices=False)
    if (values - 1).abs().max() > 0.01:
        raise ValueError("the columns of proj_buffer are not orthonormal: it is no basis")
    return Subspace((left @ right).float(), float(s), LAYOUT, space, {"source": "proj_buffer of an adapter"})


def load_pth(path: str | os.PathLike, space: OklabSpace = RELEASED) -> Subspace:
    """Read a `.pth` of the released form: `proj_mat_pN` (D, r) and `scale_pN` (), N the side of a patch.

    It is read as tensors only: nothing in it is executed. Raises ValueError for any other content.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is no file of tensors: {reason}") from None
    tensors = content if isinstance(content, dict) else {}
    sizes = [str(name).removeprefix("proj_mat_p") for name in tensors if str(name).startswith("proj_mat_p")]
    if len(sizes) != 1 or f"scale_p{sizes[0]}" not in tensors:
        raise ValueError(f"{path} holds {sorted(map(str, tensors))}; expected proj_mat_p16 and scale_p16")
    A, s = tensors[f"proj_mat_p{sizes[0]}"], tensors[f"scale_p{sizes[0]}"]
    subspace = Subspace(A.float(), float(s), LAYOUT, space, {"source": Path(path).name})
    if str(subspace.patch_size) != sizes[0]:
        raise ValueError(f"{path}: proj_mat_p{sizes[0]} is {list(A.shape)}, of no patch of that side")
    return subspace


def save_pth(subspace: Subspace, path: str | os.PathLike) -> None:
    """Write the `.pth` that `load_pth` reads, in float32."""
    channel_first, size = in_layout(subspace, LAYOUT), subspace.patch_size
    content: dict[str, Any] = {
        f"proj_mat_p{size}": channel_first.A.detach().cpu().float().contiguous(),
        f"scale_p{size}": torch.tensor(subspace.s, dtype=torch.float32),
    }
    torch.save(content, path)


def in_layout(subspace: Subspace, layout: str) -> Subspace:
    """The same subspace for patches packed in another order."""
    if subspace.layout == layout:
        return subspace
    order = layout_order(subspace.patch_size, subspace.layout, layout)
    return replace(subspace, A=subspace.A[order.to(subspace.A.device)], layout=layout)
