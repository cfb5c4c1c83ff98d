"""Figures of the pipeline: bases, spectra, losses."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from asymflow.patches import unpatchify
from asymflow.subspace import Space, captured_by_rank, smallest_rank
from pipelines.viz.image_grid import grid_of, to_pil_images

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(**options: Any) -> "Figure":
    """Return an empty matplotlib figure."""
    from matplotlib.figure import Figure  # imported here: only the driver plots, but workers import the steps

    return Figure(**options)


def basis_tiles(A: Tensor, patch_size: int, layout: str, space: Space, columns: int = 16) -> Image.Image:
    """Return each basis vector as a patch around the mean color, scaled to be visible."""
    vectors = A.mT.float()[:, None, :]
    patches = unpatchify(vectors, patch_size, patch_size, patch_size, layout=layout)
    patches = 2.0 * patches / patches.abs().amax((1, 2, 3), keepdim=True)
    return grid_of(to_pil_images(space.decode(patches)), columns=columns, scale=2)


def spectrum_figure(gram: Tensor, bases: Mapping[str, Tensor], share: float) -> "Figure":
    """Plot the spectrum of the patch Gram matrix, and the energy captured by a PCA by rank.

    Args:
        gram: (D, D) Gram matrix of patches.
        bases: bases by name; the energy along their columns is plotted too.
        share: share of the energy, whose smallest rank is marked.
    """
    eigenvalues = torch.linalg.eigvalsh(gram.double()).flip(0).clamp_min(1e-12)
    figure = new_figure(figsize=(11, 4), layout="constrained")
    axes, right = figure.subplots(1, 2)
    captured = captured_by_rank(gram)
    rank = smallest_rank(captured, share)
    right.semilogx(range(1, len(captured)), captured[1:])
    right.plot([rank], [captured[rank]], "o", label=f"{share:.0%}: rank {rank} of {len(gram)}")
    right.set(xlabel="rank", ylabel="share of energy", title="Captured by a PCA")
    right.legend(loc="lower right")
    total = eigenvalues.sum()
    axes.loglog(range(1, len(eigenvalues) + 1), eigenvalues / total, label="eigenvalues")
    for name, A in bases.items():
        energy = torch.einsum("dr,de,er->r", A.double(), gram.double(), A.double()).sort(descending=True).values
        axes.loglog(range(1, len(energy) + 1), energy / total, label=f"along {name}", linestyle="--")
    axes.set(xlabel="direction", ylabel="share of energy", title="Pixel patches")
    axes.legend()
    return figure


def convergence_figure(rows: Sequence[Mapping[str, float]], names: Sequence[str]) -> "Figure":
    """Plot 1 - overlap with the basis of all data, by the number of patches."""
    figure = new_figure(figsize=(6, 4))
    axes = figure.subplots()
    for name in names:
        axes.loglog([row["patches"] for row in rows], [max(1 - row[name], 1e-12) for row in rows], "o-", label=name)
    axes.set(xlabel="patches", ylabel="1 - overlap with the basis of all data", title="Convergence of the bases")
    axes.legend()
    return figure


def histogram_figure(edges: Sequence[Sequence[float]], counts: Tensor, names: Sequence[str]) -> "Figure":
    """Plot one panel per channel of counts (C, bins)."""
    figure = new_figure(figsize=(9, 2.8), layout="constrained")
    for axes, name, edge, count in zip(figure.subplots(1, len(names)), names, edges, counts, strict=True):
        axes.stairs(count / count.sum(), edge, fill=True)
        axes.set(xlabel=name, yscale="log")
    return figure


def curves_figure(
    x: Sequence[float], curves: Mapping[str, Sequence[float]], xlabel: str, log: bool = False
) -> "Figure":
    """Plot one panel per curve, over a shared x axis."""
    figure = new_figure(figsize=(6, 2.2 * len(curves)), layout="constrained")
    panels = figure.subplots(len(curves), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, y) in zip(panels, curves.items(), strict=True):
        axes.plot(x, y)
        axes.set_ylabel(name)
        if log:
            axes.set_yscale("log")
    panels[-1].set_xlabel(xlabel)
    return figure
