"""Compute the bases from the moments, and their captured energies, residual, standard errors and convergence."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from asymflow.moments import PatchMoments
from asymflow.subspace import captured_energy, fit_scale, pca_basis, procrustes_basis, residual_ratio


def bases_of(moments: PatchMoments, pca_rank: int) -> dict[str, tuple[Tensor, float]]:
    """Compute the bases from moments in the model's color space.

    Returns:
        {"pca": (A, 1), "subspace": (A, s)}. `subspace`, the Procrustes basis, exists only if the moments have latents.
    """
    bases = {"pca": (pca_basis(moments.pixel_gram, pca_rank), 1.0)}
    if moments.cross_gram is not None and moments.latent_norm_sq is not None:
        A = procrustes_basis(moments.cross_gram)
        bases["subspace"] = A, fit_scale(A, moments.pixel_gram, moments.latent_norm_sq)
    return bases


def measure(moments: PatchMoments, pca_rank: int) -> dict[str, float]:
    """Return the metrics of the bases: captured energies, and with latents the scale and the residual."""
    bases, gram = bases_of(moments, pca_rank), moments.pixel_gram
    measured = {"captured_pca": captured_energy(bases["pca"][0], gram)}
    if "subspace" in bases and moments.cross_gram is not None and moments.latent_norm_sq is not None:
        A, s = bases["subspace"]
        residual = residual_ratio(A, s, gram, moments.cross_gram, moments.latent_norm_sq)
        measured |= {"scale": s, "residual": residual, "captured_procrustes": captured_energy(A, gram)}
    return measured


def merged(groups: Sequence[PatchMoments]) -> PatchMoments:
    """Return the sum of moments, without changing them."""
    total = PatchMoments(groups[0].patch_dim, groups[0].latent_dim)
    for group in groups:
        total.merge(group)
    return total


def standard_errors(
    groups: Sequence[PatchMoments], measure_of: Callable[[PatchMoments], dict[str, float]]
) -> dict[str, float]:
    """Estimate the standard error of each metric by the jackknife, leaving out one group at a time.

    Args:
        groups: Moments of disjoint random parts of the data.
        measure_of: Computes the metrics from moments.

    Returns:
        {metric: standard error}, empty for a single group.
    """
    n = len(groups)
    if n < 2:
        return {}
    left_out = [measure_of(merged([g for j, g in enumerate(groups) if j != i])) for i in range(n)]
    errors = {}
    for name in left_out[0]:
        values = torch.tensor([numbers[name] for numbers in left_out], dtype=torch.float64)
        errors[name] = float(((n - 1) / n * (values - values.mean()).square().sum()).sqrt())
    return errors


def convergence(groups: Sequence[PatchMoments], bases: dict[str, tuple[Tensor, float]]) -> list[dict[str, Any]]:
    """Compute the overlap of each basis with that of a part of the data, ||A_part^T A||_F^2 / r, 1 if they are equal.

    Parts are 1/16, 1/8, ... of the groups, each contained in the next. A part that is too small for a basis is skipped.
    """
    rows, n, size = [], len(groups), 1
    while size < n:
        part = merged(groups[:size])
        row: dict[str, Any] = {"share": size / n, "patches": part.count}
        try:
            for name, (A, _) in bases_of(part, bases["pca"][0].shape[1]).items():
                row[name] = float((A.mT @ bases[name][0]).square().sum() / A.shape[1])
            rows.append(row)
        except ValueError:  # fewer patches than latent channels
            pass
        size *= 2
    return rows
