"""The low-rank subspace: its basis A, its scale s, and the file that stores them (App. A.1-A.2).

A basis belongs to one packing order and one color space. `Subspace` keeps the three together and rejects incomplete
files: training with a wrong or missing basis raises no error and gives a useless model.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from .oklab import OklabSpace
from .patches import check_layout
from .srgb import SrgbSpace
from .tensor_files import write_tensors

ORTHONORMAL_TOLERANCE = 1e-4
Space = OklabSpace | SrgbSpace
_SPACES: dict[type, str] = {OklabSpace: "oklab", SrgbSpace: "srgb"}
RECOMMENDED = "recommended_rank"
"""In a PCA's provenance: the rank that captures its `energy`"""
_BASIS_HINT = "make one with `python jobs/basis.py CONFIG.yaml`"


def project(x: torch.Tensor, A: torch.Tensor) -> torch.Tensor:
    """Project tokens onto the subspace, P x = A A^T x, by two thin products; P is never built (Eq. 23).

    Args:
        x: Tokens (..., D).
        A: Basis (D, r).

    Returns:
        P x (..., D), with the dtype of x.
    """
    with torch.autocast(x.device.type, enabled=False):
        A = A.to(device=x.device, dtype=x.dtype)
        return (x @ A) @ A.T


def _fix_signs(basis: torch.Tensor) -> torch.Tensor:
    """Make the largest entry of each column positive: an eigenvector has no sign, a file should have one."""
    if basis.shape[1] == 0:
        return basis
    largest = basis.gather(0, basis.abs().argmax(dim=0, keepdim=True))
    return basis * torch.where(largest < 0, -1.0, 1.0).to(basis.dtype)


def _check_finite(matrix: torch.Tensor, name: str) -> torch.Tensor:
    if matrix.dim() != 2:
        raise ValueError(f"{name} has shape {tuple(matrix.shape)}; expected a matrix")
    if not torch.isfinite(matrix).all():
        raise ValueError(f"{name} holds NaN or infinite values")
    return matrix.to(torch.float64)


def pca_basis(pixel_gram: torch.Tensor, rank: int) -> torch.Tensor:
    """Return the PCA basis of pixel patches (Eq. 8).

    Args:
        pixel_gram: Uncentered Gram matrix X X^T (D, D).
        rank: Number of columns, 0 to D.

    Returns:
        A (D, rank), float64; columns by falling eigenvalue, with a fixed sign.

    Raises:
        ValueError: For another rank, or a matrix that is not square or not finite.
    """
    gram = _check_finite(pixel_gram, "pixel_gram")
    if gram.shape[0] != gram.shape[1]:
        raise ValueError(f"pixel_gram has shape {tuple(gram.shape)}; expected a square matrix")
    if not 0 <= rank <= gram.shape[0]:
        raise ValueError(f"rank is {rank}; allowed: 0 to {gram.shape[0]}")
    _, vectors = torch.linalg.eigh((gram + gram.T) / 2)  # ascending
    return _fix_signs(vectors.flip(1)[:, :rank]).contiguous()


def random_basis(patch_dim: int, rank: int, seed: int = 0) -> torch.Tensor:
    """Return an orthonormal basis sampled uniformly from all subspaces of a rank (the ablation of Figure 5).

    Args:
        patch_dim: D.
        rank: Number of columns, 0 to D.
        seed: Seed of the sample.

    Returns:
        A (D, rank), float64.

    Raises:
        ValueError: For another rank.
    """
    if not 0 <= rank <= patch_dim:
        raise ValueError(f"rank is {rank}; allowed: 0 to {patch_dim}")
    normal = torch.randn(patch_dim, rank, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return _fix_signs(torch.linalg.qr(normal).Q)


def procrustes_basis(cross_gram: torch.Tensor) -> torch.Tensor:
    """Return the orthonormal lift that brings latent tokens nearest to pixel patches (Eqs. 9-10).

    A = U V^T is unique for a cross Gram matrix of full rank, so there is no sign to fix.

    Args:
        cross_gram: Cross Gram matrix X Z^T (D, d) of pixel patches and latent tokens.

    Returns:
        A (D, d), float64.

    Raises:
        ValueError: If d > D, the matrix is not finite, or its rank is not full: fewer patches than latent channels
            were added, or a latent channel is constantly zero.
    """
    cross = _check_finite(cross_gram, "cross_gram")
    if cross.shape[1] > cross.shape[0]:
        raise ValueError(f"cross_gram has shape {tuple(cross.shape)}; the latent width may not exceed the patch width")
    left, values, right = torch.linalg.svd(cross, full_matrices=False)
    if values.numel() and values[-1] <= 1e-12 * values[0]:
        found = int((values > 1e-12 * values[0]).sum())
        raise ValueError(
            f"cross_gram has rank {found} of {values.numel()}: the basis is not determined; add more images"
        )
    return left @ right


def nearest_basis(A: torch.Tensor) -> torch.Tensor:
    """Return the orthonormal basis nearest to a rounded one, U V^T of its SVD.

    Rounded to bfloat16, A^T A is off by 7e-4.

    Args:
        A: Rounded basis (D, r).

    Returns:
        A (D, r), float64.

    Raises:
        ValueError: If A is not finite, wider than high, or far from orthonormal.
    """
    wide = _check_finite(A, "the basis")
    if wide.shape[1] > wide.shape[0]:
        raise ValueError(f"the basis has shape {tuple(A.shape)}; its rank may not exceed the patch width")
    left, values, right = torch.linalg.svd(wide, full_matrices=False)
    if values.numel() and (values - 1).abs().max() > 0.01:
        raise ValueError("the columns of the basis are not orthonormal")
    return left @ right


def _norm_sq(value: torch.Tensor | float, name: str) -> float:
    value = float(value)
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} is {value}; it must be above 0")
    return value


def fit_scale(A: torch.Tensor, pixel_gram: torch.Tensor, latent_norm_sq: torch.Tensor | float) -> float:
    """Return the scale s = ||A^T X||_F / ||Z||_F (Eq. 12), so that s A Z has the norm of P X.

    Args:
        A: Basis (D, r).
        pixel_gram: X X^T (D, D).
        latent_norm_sq: ||Z||_F^2.

    Returns:
        s, above 0.

    Raises:
        ValueError: If the matrix is not finite, or one of the norms is not above 0.
    """
    A, gram = A.to(torch.float64), _check_finite(pixel_gram, "pixel_gram").to(A.device)
    projected = float(((gram @ A) * A).sum())
    return math.sqrt(_norm_sq(projected, "||A^T X||^2") / _norm_sq(latent_norm_sq, "latent_norm_sq"))


def captured_energy(A: torch.Tensor, pixel_gram: torch.Tensor) -> float:
    """Return the share of the patches' energy inside the subspace, ||P X||_F^2 / ||X||_F^2.

    Args:
        A: Basis (D, r).
        pixel_gram: X X^T (D, D).

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: If the matrix is not finite, or zero.
    """
    A, gram = A.to(torch.float64), _check_finite(pixel_gram, "pixel_gram").to(A.device)
    return float(((gram @ A) * A).sum()) / _norm_sq(gram.trace(), "||X||^2")


def captured_by_rank(pixel_gram: torch.Tensor) -> torch.Tensor:
    """Return the share of the patches' energy that a PCA of each rank captures.

    Args:
        pixel_gram: X X^T (D, D).

    Returns:
        Shares in [0, 1] by rank, 0 to D, float64 (D + 1,).

    Raises:
        ValueError: If the matrix is not finite, or zero.
    """
    gram = _check_finite(pixel_gram, "pixel_gram")
    energies = torch.linalg.eigvalsh((gram + gram.T) / 2).flip(0).clamp_min(0)
    total = energies.cumsum(0)
    return torch.cat([total.new_zeros(1), total / _norm_sq(total[-1], "||X||^2")])


def smallest_rank(captured: torch.Tensor, energy: float) -> int:
    """Return the smallest rank whose PCA captures a share of the energy.

    Args:
        captured: Result of `captured_by_rank`.
        energy: The share, in [0, 1].

    Returns:
        The rank.
    """
    enough = captured >= energy - 1e-12  # the last is 1 but for rounding
    return int(enough.int().argmax()) if enough.any() else len(captured) - 1


def residual_ratio(
    A: torch.Tensor,
    s: float,
    pixel_gram: torch.Tensor,
    cross_gram: torch.Tensor,
    latent_norm_sq: torch.Tensor | float,
) -> float:
    """Return the paired gap of the lift (Eq. 11), ||X - s A Z||_F^2 / ||X||_F^2, from the moments alone.

    Args:
        A: Orthonormal basis (D, d).
        s: Scale of the subspace.
        pixel_gram: X X^T (D, D).
        cross_gram: X Z^T (D, d).
        latent_norm_sq: ||Z||_F^2.

    Returns:
        A number >= 0; 0 for a perfect lift.

    Raises:
        ValueError: If the pixels are all zero.
    """
    A = A.to(torch.float64)
    total = _norm_sq(pixel_gram.trace(), "||X||^2")
    aligned = float((A * cross_gram.to(device=A.device, dtype=torch.float64)).sum())
    return (total - 2 * s * aligned + s * s * float(latent_norm_sq)) / total


@dataclass(frozen=True, eq=False)
class Subspace:
    """A basis with its scale, its packing order, its color space and its origin.

    Raises:
        ValueError: On construction, if a value is invalid or the columns of A are not orthonormal.
    """

    A: torch.Tensor
    """Basis (D, r), with orthonormal columns"""
    s: float
    """Scale, above 0 (Eq. 12)"""
    layout: str
    """Packing order of the patches, one of `asymflow.patches.LAYOUTS`"""
    space: Space
    """Color space of the pixels"""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Origin of the basis as JSON values: method, images, versions"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "s", float(self.s))
        check_layout(self.layout)
        if self.A.dim() != 2 or self.A.shape[1] > self.A.shape[0] or self.A.shape[0] == 0:
            raise ValueError(f"A has shape {tuple(self.A.shape)}; expected (patch_dim, rank) with rank <= patch_dim")
        if not torch.isfinite(self.A).all():
            raise ValueError("A holds NaN or infinite values")
        if not (math.isfinite(self.s) and self.s > 0):
            raise ValueError(f"scale s is {self.s}; it must be finite and above 0")
        A = self.A.to(torch.float64)
        errors = (A.T @ A - torch.eye(self.rank, dtype=A.dtype, device=A.device)).abs()
        error = float(errors.max()) if self.rank else 0.0
        if error > ORTHONORMAL_TOLERANCE:
            raise ValueError(
                f"the columns of A are not orthonormal: A^T A is off by {error:.1e}, more than "
                f"{ORTHONORMAL_TOLERANCE:.0e}; was it rounded to bfloat16?"
            )

    @property
    def patch_dim(self) -> int:
        """Number of values per patch, D."""
        return self.A.shape[0]

    @property
    def patch_size(self) -> int:
        """Side in pixels of a square patch of three color channels with `patch_dim` values."""
        return round((self.patch_dim / 3) ** 0.5)

    @property
    def oklab(self) -> OklabSpace:
        """Color space, where it must be Oklab.

        Raises:
            ValueError: For another color space.
        """
        if not isinstance(self.space, OklabSpace):
            raise ValueError("the basis was made for sRGB; this model's pixels are in Oklab")
        return self.space

    @property
    def rank(self) -> int:
        """Number of columns of A, r."""
        return self.A.shape[1]

    def save(self, path: str | os.PathLike) -> None:
        """Write the subspace to a safetensors file, atomically.

        A and s are float32; layout, color space and provenance are the file's metadata.

        Args:
            path: File to write; its folder is created.
        """
        metadata = {
            "layout": self.layout,
            "space": json.dumps({"name": _SPACES[type(self.space)], **asdict(self.space)}),
            "provenance": json.dumps(dict(self.provenance), sort_keys=True),
        }
        s = torch.tensor(self.s, dtype=torch.float32)
        write_tensors(path, {"A": self.A.to(torch.float32), "s": s}, metadata)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Subspace":
        """Read a file written by `save` and check it.

        Args:
            path: File to read.

        Returns:
            The subspace.

        Raises:
            ValueError: If the file is missing, unreadable or not a valid subspace.
        """
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise ValueError(f"there is no subspace file at {path}; {_BASIS_HINT}")
        try:
            with safe_open(str(path), framework="pt") as file:
                metadata, names = file.metadata() or {}, set(file.keys())
                tensors = {name: file.get_tensor(name) for name in ("A", "s") if name in names}
        except SafetensorError as error:
            raise ValueError(f"{path} is not a readable safetensors file ({error}); {_BASIS_HINT}") from error
        missing = [n for n in ("A", "s") if n not in tensors]
        missing += [f"metadata {n!r}" for n in ("layout", "space", "provenance") if n not in metadata]
        if missing:
            raise ValueError(f"{path} is not a subspace file, it lacks {', '.join(missing)}; {_BASIS_HINT}")
        try:
            if tensors["s"].numel() != 1:
                raise ValueError(f"s has shape {tuple(tensors['s'].shape)}; expected one number")
            space = json.loads(metadata["space"])
            name = space.get("name")
            if name not in _SPACES.values():
                raise ValueError(f"the color space is {name!r}; allowed: {', '.join(_SPACES.values())}")
            return cls(
                A=tensors["A"],
                s=tensors["s"].item(),
                layout=metadata["layout"],
                space=SrgbSpace() if name == "srgb" else OklabSpace(space["mean"], space["std"]),
                provenance=json.loads(metadata["provenance"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} holds no valid subspace: {error}; {_BASIS_HINT}") from error
