"""The Fréchet distance between two Gaussians, and the statistics of features that it needs."""

from functools import cached_property

import torch
from torch import Tensor


class FrechetStatistics:
    """Mean and covariance of features (N, dim), in parts and in float64: parts are merged, in any order.

    Deviations are summed from each part's own mean (Chan et al.), so that a large mean costs no digits.
    """

    def __init__(self, dim: int):
        self.count = 0
        self._mean = torch.zeros(dim, dtype=torch.float64)
        self._scatter = torch.zeros(dim, dim, dtype=torch.float64)

    @classmethod
    def from_moments(cls, mean: Tensor, cov: Tensor, count: int) -> "FrechetStatistics":
        """Of a reference that is given as mean (dim,) and unbiased covariance (dim, dim) of `count` features.

        Raises ValueError for shapes that do not fit, values that are not finite, or a count below 2.
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
        """Add features (N, dim) of any type and device. Raises ValueError for another width, or values not finite."""
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
        """Add another's features."""
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
        """(dim,). Raises ValueError without features."""
        if not self.count:
            raise ValueError("there are no features yet")
        return self._mean

    @property
    def cov(self) -> Tensor:
        """Unbiased, (dim, dim). Raises ValueError below two features."""
        if self.count < 2:
            raise ValueError(f"a covariance needs two features, there are {self.count}")
        return self._scatter / (self.count - 1)


    @cached_property
    def root(self) -> Tensor:
        """L (dim, rank) with L L^T the covariance; n features have a rank of at most n - 1, and the rest is rounding.

        Kept until features are added: a reference is compared with many times.
        """
        values, vectors = torch.linalg.eigh(self.cov)
        rank = min(len(values), self.count - 1)
        return vectors[:, -rank:] * values[-rank:].clamp_min(0).sqrt()


def frechet_distance(a: FrechetStatistics, b: FrechetStatistics) -> float:
    """|mean_a - mean_b|^2 + tr(cov_a) + tr(cov_b) - 2 tr((cov_a cov_b)^(1/2)); FID where features are Inception's.

    The last trace is the sum of the singular values of L_a^T L_b, where cov = L L^T: no square root of a product that
    is not symmetric, and no imaginary parts to drop. It is exact for fewer features than their width too, when L has
    only so many columns. ValueError for statistics of other widths or of fewer than two features.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features of {len(a.mean)} and of {len(b.mean)} values have no distance")
    cross = torch.linalg.svdvals(a.root.T @ b.root).sum()
    return float((a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * cross)
