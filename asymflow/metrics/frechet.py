"""Fréchet distance between two Gaussians (FID, Heusel et al. 2017), and the statistics of features that it needs."""

from functools import cached_property

import torch
from torch import Tensor


class FrechetStatistics:
    """Mean and covariance of features, summed in parts in float64; parts can be merged in any order.

    Deviations are summed from each part's own mean (Chan et al.), so that a large mean costs no digits.

    Args:
        dim: Width of a feature.
    """

    def __init__(self, dim: int):
        self.count = 0
        self._mean = torch.zeros(dim, dtype=torch.float64)
        self._scatter = torch.zeros(dim, dim, dtype=torch.float64)

    @classmethod
    def from_moments(cls, mean: Tensor, cov: Tensor, count: int) -> "FrechetStatistics":
        """Return the statistics of a reference that is given by its moments.

        Args:
            mean: Mean (dim,).
            cov: Unbiased covariance (dim, dim).
            count: Number of features, at least 2.

        Returns:
            The statistics.

        Raises:
            ValueError: If shapes do not fit, values are not finite, or the count is below 2.
        """
        statistics = cls(len(mean))
        if mean.ndim != 1 or cov.shape != statistics._scatter.shape or count < 2:
            raise ValueError(f"mean {tuple(mean.shape)}, covariance {tuple(cov.shape)}, count {count} do not fit")
        statistics._mean, statistics._scatter = mean.double().cpu(), cov.double().cpu() * (count - 1)
        if not (torch.isfinite(statistics._mean).all() and torch.isfinite(statistics._scatter).all()):
            raise ValueError("the moments hold NaN or infinite values")
        statistics.count = count
        return statistics

    def update(self, features: Tensor) -> "FrechetStatistics":
        """Add features.

        Args:
            features: Features (N, dim) of any type, on any device.

        Returns:
            These statistics.

        Raises:
            ValueError: For another width, or values that are not finite.
        """
        if features.ndim != 2 or features.shape[1] != len(self._mean):
            raise ValueError(f"features are {tuple(features.shape)}; expected (N, {len(self._mean)})")
        features = features.detach().double()
        if not torch.isfinite(features).all():
            raise ValueError("the features hold NaN or infinite values")
        if len(features):
            mean = features.mean(0)
            deviations = features - mean
            self._add(len(features), mean.cpu(), (deviations.T @ deviations).cpu())
        return self

    def merge(self, other: "FrechetStatistics") -> "FrechetStatistics":
        """Add the features of other statistics.

        Args:
            other: Statistics of the same width.

        Returns:
            These statistics.

        Raises:
            ValueError: For another width.
        """
        if other._mean.shape != self._mean.shape:
            raise ValueError(f"features of {len(other._mean)} values do not go with those of {len(self._mean)}")
        self._add(other.count, other._mean, other._scatter)
        return self

    def _add(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        total = self.count + count
        if not count:
            return
        self.__dict__.pop("root", None)
        shift = mean - self._mean
        self._scatter = self._scatter + scatter + torch.outer(shift, shift) * (self.count * count / total)
        self._mean = self._mean + shift * (count / total)
        self.count = total

    @property
    def mean(self) -> Tensor:
        """Mean (dim,), float64.

        Raises:
            ValueError: If there are no features.
        """
        if not self.count:
            raise ValueError("there are no features: call update first")
        return self._mean

    @property
    def cov(self) -> Tensor:
        """Unbiased covariance (dim, dim), float64.

        Raises:
            ValueError: If there are fewer than two features.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs two features, there are {self.count}")
        return self._scatter / (self.count - 1)

    @cached_property
    def root(self) -> Tensor:
        """Factor L (dim, rank) with L L^T the covariance, float64; n features give a rank of at most n - 1.

        It is cached until features are added, since a reference is compared many times.

        Returns:
            L.
        """
        values, vectors = torch.linalg.eigh(self.cov)
        rank = min(len(values), self.count - 1)
        return vectors[:, -rank:] * values[-rank:].clamp_min(0).sqrt()


def frechet_distance(a: FrechetStatistics, b: FrechetStatistics) -> float:
    """Return |mean_a - mean_b|^2 + tr(cov_a) + tr(cov_b) - 2 tr((cov_a cov_b)^(1/2)); FID for Inception features.

    The last trace is the sum of the singular values of L_a^T L_b with cov = L L^T, which needs no square root of a
    product that is not symmetric, and has no imaginary part. It is also exact for fewer features than their width.

    Args:
        a: Statistics of one set.
        b: Statistics of the other set, of the same width.

    Returns:
        The squared Fréchet distance, as FID is reported; lower is better.

    Raises:
        ValueError: If the widths differ, or a set has fewer than two features.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features of {len(a.mean)} and of {len(b.mean)} values have no distance")
    cross = torch.linalg.svdvals(a.root.T @ b.root).sum()
    return float((a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * cross)
