"""Subspace of an adapter: from the file beside it in full precision, or from its own rounded buffers."""

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
from asymflow.subspace import Subspace, nearest_basis

LOGGER = logging.getLogger(__name__)
LAYOUT = "channel_first"
"""Packing order in all adapter files"""
SUBSPACE = "subspace.safetensors"
_ANOTHER, _ROUNDING = 1e-3, 2**-8
"""Largest difference to buffers rounded to bfloat16, absolute and relative to an entry (those of small patches are
large) or to the scale; another basis differs by 0.1"""


def find_subspace(folder: str | os.PathLike, tensors: Mapping[str, Tensor]) -> Subspace:
    """Return the subspace of an adapter, channel first.

    It is read from `subspace.safetensors`, else from a `.pth` in the released form, else from the tensors' own buffers,
    orthonormalized. The last two store no color space; the released one is used.

    Args:
        folder: Folder of the adapter.
        tensors: Tensors of the adapter, named as in the released file.

    Returns:
        The subspace.

    Raises:
        ValueError: If none is valid, or the file's subspace is not the one that the adapter was made with.
    """
    folder = Path(folder)
    missing = [name for name in ("proj_buffer", "scale_buffer") if name not in tensors]
    if missing:
        raise ValueError(f"the adapter in {folder} lacks {' and '.join(missing)}: it is not an AsymFlow adapter")
    pths = sorted(folder.glob("*.pth"))
    if (folder / SUBSPACE).is_file():
        subspace = in_layout(Subspace.load(folder / SUBSPACE), LAYOUT)
    elif len(pths) > 1:
        raise ValueError(f"{folder} has several subspaces, {', '.join(p.name for p in pths)}; keep one")
    elif pths:
        subspace = load_pth(pths[0])
    else:
        LOGGER.info("%s has no %s: using its bfloat16 buffers and the released color space", folder, SUBSPACE)
        return from_buffers(tensors["proj_buffer"], tensors["scale_buffer"])
    if name := differing_buffer(subspace, tensors):
        raise ValueError(f"the subspace in {folder} is not the one that the adapter was made with: {name} differs")
    return subspace


def differing_buffer(subspace: Subspace, tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of an adapter's buffer that belongs to another subspace.

    Buffers are rounded to half precision, and a subspace may itself come from rounded ones; differences of this size
    are ignored.

    Args:
        subspace: Subspace, packed as the tensors are.
        tensors: Tensors with `proj_buffer` (D, r) and `scale_buffer` (), of any float type.

    Returns:
        `proj_buffer`, `scale_buffer`, or None if both belong to the subspace.
    """
    A, s = tensors["proj_buffer"].cpu().float(), float(tensors["scale_buffer"])
    own = subspace.A.cpu().float()
    if A.shape != own.shape or not torch.allclose(A, own, atol=_ANOTHER, rtol=_ROUNDING):  # nan differs
        return "proj_buffer"
    return None if abs(s - subspace.s) <= _ROUNDING * subspace.s else "scale_buffer"


def from_buffers(A: Tensor, s: Tensor, space: OklabSpace = RELEASED) -> Subspace:
    """Return the subspace of buffers rounded to bfloat16, whose A^T A is off by 7e-4.

    A becomes the nearest orthonormal matrix.

    Args:
        A: Rounded basis (D, r).
        s: Scale, one number.
        space: Color space of the subspace.

    Returns:
        The subspace, channel first.

    Raises:
        ValueError: If A is far from orthonormal or not finite, or a shape does not fit.
    """
    if A.ndim != 2 or A.shape[0] < A.shape[1] or s.numel() != 1:
        shapes = f"proj_buffer is {list(A.shape)} and scale_buffer {list(s.shape)}"
        raise ValueError(f"{shapes}; expected a basis (D, r) and one number")
    try:
        basis = nearest_basis(A).float()
    except ValueError as error:
        raise ValueError(f"proj_buffer is not a basis: {error}") from None
    return Subspace(basis, float(s), LAYOUT, space, {"source": "proj_buffer of an adapter"})


def load_pth(path: str | os.PathLike, space: OklabSpace = RELEASED) -> Subspace:
    """Read a `.pth` in the released form: `proj_mat_pN` (D, r) and `scale_pN` (), N the side of a patch in pixels.

    The file is read as tensors only; no code in it is executed.

    Args:
        path: The file.
        space: Color space of the subspace, which the file does not store.

    Returns:
        The subspace, channel first.

    Raises:
        ValueError: For any other content.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is not a file of tensors: {reason}") from None
    tensors = content if isinstance(content, dict) else {}
    sizes = [str(name).removeprefix("proj_mat_p") for name in tensors if str(name).startswith("proj_mat_p")]
    if len(sizes) != 1 or f"scale_p{sizes[0]}" not in tensors:
        raise ValueError(f"{path} holds {sorted(map(str, tensors))}; expected proj_mat_p16 and scale_p16")
    A, s = tensors[f"proj_mat_p{sizes[0]}"], tensors[f"scale_p{sizes[0]}"]
    subspace = Subspace(A.float(), float(s), LAYOUT, space, {"source": Path(path).name})
    if str(subspace.patch_size) != sizes[0]:
        raise ValueError(f"{path}: proj_mat_p{sizes[0]} is {list(A.shape)}, which does not fit a patch of that side")
    return subspace


def save_pth(subspace: Subspace, path: str | os.PathLike) -> None:
    """Write the `.pth` that `load_pth` reads, in float32.

    Args:
        subspace: The subspace, in any packing order.
        path: File to write.
    """
    channel_first, size = in_layout(subspace, LAYOUT), subspace.patch_size
    content: dict[str, Any] = {
        f"proj_mat_p{size}": channel_first.A.detach().cpu().float().contiguous(),
        f"scale_p{size}": torch.tensor(subspace.s, dtype=torch.float32),
    }
    torch.save(content, path)


def in_layout(subspace: Subspace, layout: str) -> Subspace:
    """Return the same subspace for patches packed in another order.

    Args:
        subspace: The subspace.
        layout: Packing order, one of `asymflow.patches.LAYOUTS`.

    Returns:
        The subspace in this packing order.
    """
    if subspace.layout == layout:
        return subspace
    order = layout_order(subspace.patch_size, subspace.layout, layout)
    return replace(subspace, A=subspace.A[order.to(subspace.A.device)], layout=layout)
