"""References that images are compared with: the files of the ADM evaluation."""

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from asymflow.metrics.frechet import FrechetStatistics

IMAGENET_TRAIN = 1_281_167
_SYMMETRY = 1e-6  # of the largest entry; of a covariance only one triangle is read


@dataclass(frozen=True)
class Reference:
    """Reference of an ADM evaluation."""

    pool: FrechetStatistics
    """Statistics of pool3's 2048 features, for FID"""
    spatial: FrechetStatistics | None
    """Statistics of 2023 spatial features in the order (17, 17, 7): row, column, channel; for sFID"""
    images: np.ndarray | None
    """uint8 (N, H, W, 3), for precision and recall"""
    sha256: str
    """SHA-256 of the file, part of a protocol"""


def load_reference(path: str | Path, images: bool = False, count: int = IMAGENET_TRAIN) -> Reference:
    """Read an .npz with `mu`, `sigma`, and optionally `mu_s`, `sigma_s`, `arr_0`.

    Args:
        path: The file.
        images: Whether to read the images, `arr_0`.
        count: Number of images behind the moments, which the file does not store; by default ImageNet's. It bounds the
            rank of the covariance, so a distance depends on it only if it is at most the number of features.

    Returns:
        The reference.

    Raises:
        ValueError: If the file is missing, not an .npz, or lacks an entry; or an entry has another shape or type, is
            not finite, or is not a covariance.
    """
    arrays, sha256 = _read(Path(path), images)
    pool = _statistics(path, arrays["mu"], arrays["sigma"], count)
    spatial = _statistics(path, arrays["mu_s"], arrays["sigma_s"], count) if "mu_s" in arrays else None
    arr_0 = arrays.get("arr_0")
    if arr_0 is not None and (arr_0.dtype != np.uint8 or arr_0.ndim != 4 or arr_0.shape[-1] != 3):
        raise ValueError(f"{path}: arr_0 is {arr_0.dtype} {arr_0.shape}; expected uint8 (N, H, W, 3)")
    return Reference(pool, spatial, arr_0, sha256)


def _read(path: Path, images: bool) -> tuple[dict[str, np.ndarray], str]:
    try:
        with open(path, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if not zipfile.is_zipfile(path):
            raise ValueError("it is not an .npz")
        with np.load(path, allow_pickle=False) as entries:
            found = set(entries.files)
            spatial = bool(found & {"mu_s", "sigma_s"})
            needed = ["mu", "sigma"] + ["mu_s", "sigma_s"] * spatial + ["arr_0"] * images
            if missing := [name for name in needed if name not in found]:
                raise ValueError(f"it has no {', '.join(missing)}, but {', '.join(sorted(found)) or 'nothing'}")
            return {name: entries[name] for name in needed}, sha256
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _statistics(path: str | Path, mean: np.ndarray | Tensor, cov: np.ndarray | Tensor, count: int) -> FrechetStatistics:
    try:
        mean, cov = torch.as_tensor(mean).double(), torch.as_tensor(cov).double()
        if mean.ndim != 1:
            raise ValueError(f"the mean is {tuple(mean.shape)}, not (dim,)")
        statistics = FrechetStatistics.from_moments(mean, cov, count)
        if not (cov - cov.T).abs().max() <= _SYMMETRY * cov.abs().max() or (cov.diagonal() < 0).any():
            raise ValueError("the covariance is not symmetric, or has negative variances")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    return statistics
