"""Encodings of time and position in a JiT: sinusoidal time, fixed 2D positions, rotary embedding."""

import torch
import torch.nn.functional as F
from torch import Tensor

from asymflow.models.jit_config import FREQUENCIES as FREQUENCIES

_THETA = 10_000.0


def wave_frequencies(device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the frequencies of the sinusoidal time embedding, falling from 1.

    Args:
        device: Device of the result.
        dtype: Type of the result.

    Returns:
        Frequencies (128,).
    """
    half = FREQUENCIES // 2
    return _THETA ** (-torch.arange(half, device=device, dtype=dtype) / half)


def wave(t: Tensor) -> Tensor:
    """Return the sinusoidal embedding of the time: cosines, then sines, at falling frequencies.

    Args:
        t: Times (B,).

    Returns:
        Embeddings (B, 256).
    """
    angles = t[:, None] * wave_frequencies(t.device, t.dtype)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def positions(width: int, grid: tuple[int, int], device: torch.device) -> Tensor:
    """Return the fixed position embeddings: sines and cosines, the first half of the column, the second of the row.

    Args:
        width: Width of an embedding.
        grid: Rows and columns of tokens, (h, w).
        device: Device of the result.

    Returns:
        Embeddings (h w, width), float64.
    """
    quarter = width // 4
    frequencies = _THETA ** (-torch.arange(quarter, device=device, dtype=torch.float64) / quarter)
    rows, columns = (torch.arange(side, device=device, dtype=torch.float64) for side in grid)

    def along(indices: Tensor) -> Tensor:
        angles = indices[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=-1)

    by_column = along(columns).expand(grid[0], -1, -1)
    by_row = along(rows)[:, None].expand(-1, grid[1], -1)
    both = torch.cat([by_column, by_row], dim=-1).flatten(0, 1)
    return F.pad(both, (0, width - both.shape[1]))


def rotations(head_width: int, grid: tuple[int, int], device: torch.device) -> Tensor:
    """Return the rotary embedding; half of the pairs rotate with the row, half with the column.

    Args:
        head_width: Width of an attention head.
        grid: Rows and columns of tokens, (h, w).
        device: Device of the result.

    Returns:
        Cosine and sine of each pair's angle (2, h w, head_width / 2), float64.
    """
    pairs = head_width // 4
    frequencies = _THETA ** (-torch.arange(pairs, device=device, dtype=torch.float64) / pairs)
    rows, columns = (torch.arange(side, device=device, dtype=torch.float64)[:, None] * frequencies for side in grid)
    by_row, by_column = rows[:, None].expand(-1, grid[1], -1), columns[None].expand(grid[0], -1, -1)
    angles = torch.cat([by_row, by_column], dim=-1).flatten(0, 1)
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotate neighboring pairs of values.

    Args:
        x: Queries or keys (B, heads, N, head_width).
        rotation: Result of `rotations`.

    Returns:
        Rotated values, of the same shape and dtype.
    """
    cos, sin = rotation
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2).to(x.dtype)
