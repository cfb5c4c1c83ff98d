"""Improved precision and recall (Kynkäänniemi et al. 2019): the overlap of the manifolds of two sets of features."""

import torch
from torch import Tensor

_ROUNDING = 1e-13  # of a squared distance, in units of the largest squared norm


def precision_recall(features: Tensor, reference: Tensor, k: int = 3, chunk: int = 4096) -> tuple[float, float]:
    """Return precision and recall of features against reference features.

    A set's manifold is the union of balls around its points; the radius is the distance to the k-th nearest *other*
    point. Precision is the share of `features` on the reference's manifold, recall the share of `reference` on that of
    the features. A point on a ball's surface is inside, and copies of a point are its neighbors.

    Distances are float64. They come from a matrix product, so equal distances differ by rounding; within it they count
    as equal. torch-fidelity computes the same product in the features' own precision and compares exactly: with ties,
    copies, or float32 far from the origin it may miss points that are counted here.

    Args:
        features: Features (N, dim).
        reference: Reference features (M, dim), on the same device.
        k: Rank of the neighbor that gives the radius.
        chunk: Side of the blocks of the distance matrix.

    Returns:
        Precision and recall, in [0, 1].

    Raises:
        ValueError: If shapes do not fit, a set has at most k points, or values are not finite.
    """
    if features.ndim != 2 or reference.ndim != 2 or features.shape[1] != reference.shape[1]:
        raise ValueError(f"features are {tuple(features.shape)} and {tuple(reference.shape)}; expected (N, dim) each")
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; it must be 1 or more")
    if k < 1 or min(len(features), len(reference)) <= k:
        raise ValueError(f"{len(features)} and {len(reference)} points: needed are more than k = {k}, k of 1 or more")
    if not (torch.isfinite(features).all() and torch.isfinite(reference).all()):
        raise ValueError("the features hold NaN or infinite values")
    middle = reference.mean(0, dtype=torch.float64)  # smaller norms round less, and distances stay
    fake = [part.double() - middle for part in features.detach().split(chunk)]
    real = [part.double() - middle for part in reference.detach().split(chunk)]
    slack = _ROUNDING * max(float(part.square().sum(1).max()) for part in fake + real)
    fake_radii, real_radii = _radii(fake, k), _radii(real, k)
    precise = [torch.zeros(len(a), dtype=torch.bool, device=a.device) for a in fake]
    recalled = [torch.zeros(len(b), dtype=torch.bool, device=b.device) for b in real]
    for i, a in enumerate(fake):
        for j, b in enumerate(real):
            squares = _squares(a, b)
            precise[i] |= (squares <= real_radii[j] + slack).any(1)
            recalled[j] |= (squares <= fake_radii[i][:, None] + slack).any(0)
    return float(torch.cat(precise).double().mean()), float(torch.cat(recalled).double().mean())


def _squares(a: Tensor, b: Tensor) -> Tensor:
    """Return the squared distances (N, M)."""
    return torch.addmm(a.square().sum(1)[:, None] + b.square().sum(1), a, b.T, alpha=-2).clamp_min(0)


def _radii(parts: list[Tensor], k: int) -> list[Tensor]:
    """Return each point's squared distance to its k-th neighbor, in parts; the nearest of all is the point itself."""
    radii = []
    for a in parts:
        nearest = a.new_empty(len(a), 0)
        for b in parts:
            nearest = torch.cat([nearest, _squares(a, b)], 1)
            nearest = nearest.topk(min(k + 1, nearest.shape[1]), largest=False).values
        radii.append(nearest.amax(1))
    return radii
