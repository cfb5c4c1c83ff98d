"""The low-rank subspace: its basis A, its scale s, and the file that carries them (App. A.1-A.2).

A basis belongs to one packing order and one colour space; `Subspace` keeps the three together and refuses to
load anything that is not whole, since a wrong or missing basis trains without an error and generates rubbish.
"""

import json
import math
import os
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from .oklab import OklabSpace
from .patches import check_layout
from .srgb import SrgbSpace
from .tensor_files import sort_metadata

ORTHONORMAL_TOLERANCE = 1e-4
Space = OklabSpace | SrgbSpace
_SPACES: dict[type, str] = {OklabSpace: "oklab", SrgbSpace: "srgb"}
RECOMMENDED = "recommended_rank"
"""In a PCA's provenance: the rank that captures its `energy`"""
_HOW_TO_GET_ONE = "make one with `python jobs/basis.py CONFIG.yaml`"


def project(x: torch.Tensor, A: torch.Tensor) -> torch.Tensor:
    """P x = A A^T x for tokens x (..., D) and A (D, r) by two thin products; P is never built (Eq. 23)."""
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
    """PCA basis A (D, rank) from the uncentred Gram matrix X X^T (D, D) of pixel patches (Eq. 8).

    Columns are ordered by falling eigenvalue; their sign is fixed. Computed and returned in float64. Rank may
    be 0 to D; ValueError otherwise, or for a matrix that is not square or not finite.
    """
    gram = _check_finite(pixel_gram, "pixel_gram")
    if gram.shape[0] != gram.shape[1]:
        raise ValueError(f"pixel_gram has shape {tuple(gram.shape)}; expected a square matrix")
    if not 0 <= rank <= gram.shape[0]:
        raise ValueError(f"rank is {rank}; allowed: 0 to {gram.shape[0]}")
    _, vectors = torch.linalg.eigh((gram + gram.T) / 2)  # ascending
    return _fix_signs(vectors.flip(1)[:, :rank]).contiguous()


def random_basis(patch_dim: int, rank: int, seed: int = 0) -> torch.Tensor:
    """Orthonormal A (D, rank) of a subspace drawn evenly from all of that rank (the ablation of Figure 5); float64."""
    if not 0 <= rank <= patch_dim:
        raise ValueError(f"rank is {rank}; allowed: 0 to {patch_dim}")
    drawn = torch.randn(patch_dim, rank, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return _fix_signs(torch.linalg.qr(drawn).Q)


def procrustes_basis(cross_gram: torch.Tensor) -> torch.Tensor:
    """Orthonormal lift A (D, d) that brings latent tokens nearest to pixel patches, from X Z^T (D, d) (Eqs.
    9-10).

    Float64. A = U V^T is unique for a cross Gram of full rank, so there is no sign to fix. ValueError when d
    > D or when the rank is not full: fewer patches than latent channels were seen, or a latent channel is
    constant zero.
    """
    cross = _check_finite(cross_gram, "cross_gram")
    if cross.shape[1] > cross.shape[0]:
        raise ValueError(
            f"cross_gram has shape {tuple(cross.shape)}; the latent width may not exceed the patch width"
        )
    left, values, right = torch.linalg.svd(cross, full_matrices=False)
    if values.numel() and values[-1] <= 1e-12 * values[0]:
        found = int((values > 1e-12 * values[0]).sum())
        raise ValueError(
            f"cross_gram has rank {found} of {values.numel()}: the basis is not determined; add more images"
        )
    return left @ right


def _norm_sq(value: torch.Tensor | float, name: str) -> float:
    value = float(value)
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} is {value}; it must be above 0")
    return value


def fit_scale(A: torch.Tensor, pixel_gram: torch.Tensor, latent_norm_sq: torch.Tensor | float) -> float:
    """Scale s = ||A^T X||_F / ||Z||_F from X X^T and ||Z||_F^2 (Eq. 12), so that s A Z is as large as P X."""
    A, gram = A.to(torch.float64), _check_finite(pixel_gram, "pixel_gram").to(A.device)
    projected = float(((gram @ A) * A).sum())
    return math.sqrt(_norm_sq(projected, "||A^T X||^2") / _norm_sq(latent_norm_sq, "latent_norm_sq"))


def captured_energy(A: torch.Tensor, pixel_gram: torch.Tensor) -> float:
    """||P X||_F^2 / ||X||_F^2 in [0, 1]: the share of the patches' energy inside the subspace."""
    A, gram = A.to(torch.float64), _check_finite(pixel_gram, "pixel_gram").to(A.device)
    return float(((gram @ A) * A).sum()) / _norm_sq(gram.trace(), "||X||^2")


def captured_by_rank(pixel_gram: torch.Tensor) -> torch.Tensor:
    """Return the share of the patches' energy that a PCA of each rank from 0 to D captures: float64 (D + 1,)."""
    gram = _check_finite(pixel_gram, "pixel_gram")
    energies = torch.linalg.eigvalsh((gram + gram.T) / 2).flip(0).clamp_min(0)
    total = energies.cumsum(0)
    return torch.cat([total.new_zeros(1), total / _norm_sq(total[-1], "||X||^2")])


def smallest_rank(captured: torch.Tensor, energy: float) -> int:
    """Return the smallest rank that captures a share `energy`, in [0, 1], by `captured_by_rank`."""
    enough = captured >= energy - 1e-12  # the last is 1 but for rounding
    return int(enough.int().argmax()) if enough.any() else len(captured) - 1


def residual_ratio(
    A: torch.Tensor,
    s: float,
    pixel_gram: torch.Tensor,
    cross_gram: torch.Tensor,
    latent_norm_sq: torch.Tensor | float,
) -> float:
    """||X - s A Z||_F^2 / ||X||_F^2 from the moments alone (A orthonormal): the paired gap of the lift (Eq.
    11).
    """
    A = A.to(torch.float64)
    total = _norm_sq(pixel_gram.trace(), "||X||^2")
    aligned = float((A * cross_gram.to(device=A.device, dtype=torch.float64)).sum())
    return (total - 2 * s * aligned + s * s * float(latent_norm_sq)) / total


@dataclass(frozen=True, eq=False)
class Subspace:
    """A (D, r) with orthonormal columns, the scale s, and what they are valid for.

    `layout` is the packing order of the patches, `space` the colour space, `provenance` anything JSON that
    says where the basis comes from (method, images, versions). Construction raises ValueError unless all of
    it is sound.
    """

    A: torch.Tensor
    s: float
    layout: str
    space: Space
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "s", float(self.s))
        check_layout(self.layout)
        if self.A.dim() != 2 or self.A.shape[1] > self.A.shape[0] or self.A.shape[0] == 0:
            raise ValueError(
                f"A has shape {tuple(self.A.shape)}; expected (patch_dim, rank) with rank <= patch_dim"
            )
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
        return self.A.shape[0]

    @property
    def patch_size(self) -> int:
        """Side of a square patch of three colours with patch_dim values."""
        return round((self.patch_dim / 3) ** 0.5)

    @property
    def oklab(self) -> OklabSpace:
        """The colour space where only Oklab will do. ValueError for another."""
        if not isinstance(self.space, OklabSpace):
            raise ValueError("the basis was made for sRGB; this model's pixels are in Oklab")
        return self.space

    @property
    def rank(self) -> int:
        return self.A.shape[1]

    def save(self, path: str | os.PathLike) -> None:
        """Write safetensors (A and s in float32; layout, space and provenance as metadata), whole or not at
        all.
        """
        from safetensors.torch import save_file

        path = Path(path)
        metadata = {
            "layout": self.layout,
            "space": json.dumps({"name": _SPACES[type(self.space)], **asdict(self.space)}),
            "provenance": json.dumps(dict(self.provenance), sort_keys=True),
        }
        tensors = {
            "A": self.A.detach().to(device="cpu", dtype=torch.float32).contiguous(),
            "s": torch.tensor(self.s, dtype=torch.float32),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            save_file(tensors, temporary, metadata)
            sort_metadata(temporary)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Subspace":
        """Read and check a file written by `save`. ValueError says what is wrong and how to get one."""
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise ValueError(f"there is no subspace file at {path}; {_HOW_TO_GET_ONE}")
        try:
            with safe_open(str(path), framework="pt") as file:
                metadata, names = file.metadata() or {}, set(file.keys())
                tensors = {name: file.get_tensor(name) for name in ("A", "s") if name in names}
        except SafetensorError as error:
            raise ValueError(
                f"{path} is not a readable safetensors file ({error}); {_HOW_TO_GET_ONE}"
            ) from error
        missing = [n for n in ("A", "s") if n not in tensors]
        missing += [f"metadata {n!r}" for n in ("layout", "space", "provenance") if n not in metadata]
        if missing:
            raise ValueError(
                f"{path} is not a subspace file, it lacks {', '.join(missing)}; {_HOW_TO_GET_ONE}"
            )
        try:
            if tensors["s"].numel() != 1:
                raise ValueError(f"s has shape {tuple(tensors['s'].shape)}; expected one number")
            space = json.loads(metadata["space"])
            name = space.get("name")
            if name not in _SPACES.values():
                raise ValueError(f"the colour space is {name!r}; allowed: {', '.join(_SPACES.values())}")
            return cls(
                A=tensors["A"],
                s=tensors["s"].item(),
                layout=metadata["layout"],
                space=SrgbSpace() if name == "srgb" else OklabSpace(space["mean"], space["std"]),
                provenance=json.loads(metadata["provenance"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} holds no valid subspace: {error}; {_HOW_TO_GET_ONE}") from error
