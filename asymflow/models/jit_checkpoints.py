"""Published checkpoints of JiT and AsymFlow-ImageNet as models of `asymflow.models.jit`.

`asymflow.models.jit_weights` converts the weights. JiT for images of 512 pixels and more was trained with noise of
standard deviation 2 and more: `noise_scale`. The factor sqrt(2 D / (D + bottleneck)) by which AsymFlow's code scales
the basis in the bottleneck is an initialization: it is part of the stored weights.
"""

import argparse
import math
import os
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from asymflow.models.jit import LAYOUT, JiTConfig, PixelJiT
from asymflow.models.jit_positions import positions
from asymflow.models.jit_weights import BASIS, SCALE, Kind, from_published, infer_config
from asymflow.srgb import SrgbSpace
from asymflow.subspace import Subspace, nearest_basis

EMA = "model_ema1"
"""The moving average that JiT is evaluated with: one of the entries of its `.pth` files"""
DOWNLOAD_HINT = (
    "JiT's are linked in the README of github.com/LTH14/JiT, AsymFlow's are downloaded by "
    "`hf download Lakonik/AsymFlow-ImageNet --local-dir FOLDER`"
)
_GRID = 16
"""Rows and columns of tokens in every published model"""
_BASE_PATCH = 16
"""Largest patch that is trained with noise of standard deviation 1"""
_POSITIONS = ("pos_embed", "x_embedder.pos_embed")


@dataclass(frozen=True, eq=False)
class PublishedJiT:
    """A checkpoint's content in the terms of `asymflow.models.jit`."""

    kind: Kind
    """Origin: jit predicts x_0 (rank 0), asymflow predicts u_A"""
    config: JiTConfig
    """Shapes of the network"""
    subspace: Subspace
    """Subspace of the noise that is predicted; of rank 0 for JiT"""
    noise_scale: float
    """Standard deviation of the noise that the network was trained with"""
    side: int
    """Side in pixels of the images that the network was trained on"""
    values: Mapping[str, Tensor]
    """Parameters of `JiT` by name, in at least float32"""

    def build(self, sigma_floor_sample: float = 4e-2) -> PixelJiT:
        """Return the model, ready to sample from.

        Args:
            sigma_floor_sample: Lower bound of sigma in the recovery, when sampling.

        Returns:
            The model, in evaluation mode, float32.
        """
        model = PixelJiT(self.config, self.subspace, sigma_floor_sample, self.noise_scale)
        model.network.load_state_dict(dict(self.values))
        return model.eval()


def read_published(
    path: str | os.PathLike,
    context_from: int | None = None,
    noise_scale: float | None = None,
    entry: str = EMA,
) -> PublishedJiT:
    """Read a published checkpoint: JiT's `.pth`, or a `.safetensors` file of JiT or AsymFlow.

    Args:
        path: The file.
        context_from: First block whose tokens include the class tokens, which the file does not store; None: that of
            the published size.
        noise_scale: Standard deviation of the noise that the network was trained with; None: as published, the side of
            a patch over 16 for JiT of larger patches, else 1.
        entry: Entry of a `.pth` file with several sets of weights.

    Returns:
        The checkpoint's content.

    Raises:
        ValueError: If the file is missing, cannot be read, or is not of a JiT of these shapes.
    """
    tensors = read_checkpoint(path, entry)
    try:
        kind: Kind = "asymflow" if BASIS in tensors else "jit"
        config = infer_config(tensors, context_from)
        values = from_published(tensors, config, kind)
        side = _check_positions(tensors, config) * config.patch_size
        subspace = _subspace(tensors, config, Path(path).name)
    except ValueError as error:
        raise ValueError(f"{path} is not a checkpoint of JiT: {error}") from None
    if noise_scale is None:
        noise_scale = max(1.0, config.patch_size / _BASE_PATCH) if kind == "jit" else 1.0
    return PublishedJiT(kind, config, subspace, noise_scale, side, values)


def read_checkpoint(path: str | os.PathLike, entry: str = EMA) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint under their published names. No code in the file is executed.

    Args:
        path: A `.safetensors` file, or a `.pth` file of tensors by name or of several sets of them.
        entry: Entry of a `.pth` file with several sets of weights.

    Returns:
        Tensors by name, without the prefix `net.` of JiT's own files.

    Raises:
        ValueError: If the file is missing, cannot be read, or has no such entry.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the checkpoint in it: a .safetensors or .pth file")
    if not path.is_file():
        raise ValueError(f"there is no checkpoint at {path}; {DOWNLOAD_HINT}")
    content: Any
    if path.suffix == ".safetensors":
        try:
            content = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a readable safetensors file ({error})") from None
    else:
        content = _read_pth(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected tensors by name")
    if any(isinstance(value, dict) for value in content.values()):
        if entry not in content:
            sets = [str(name) for name, value in content.items() if isinstance(value, dict)]
            raise ValueError(f"{path} has no weights {entry!r}; it has {', '.join(sets)}")
        content = content[entry]
    return {str(name).removeprefix("net."): value for name, value in content.items() if isinstance(value, Tensor)}


def _read_pth(path: Path) -> Any:
    """Return the content of a `.pth` file: tensors, containers, and the settings that JiT's own files store."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        if zipfile.is_zipfile(path):
            packed = [name for name in zipfile.ZipFile(path).namelist() if name.endswith((".pth", ".safetensors"))]
            if packed:
                raise ValueError(f"{path} is a zip archive; unpack it and give the {packed[0]} in it") from None
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is not a file of tensors: {reason}") from None


def _check_positions(tensors: Mapping[str, Tensor], config: JiTConfig) -> int:
    """Return the number of rows of tokens, by the position embedding where the file stores it.

    Raises:
        ValueError: If the position embedding is not the fixed one that the network computes.
    """
    stored = [tensors[name].squeeze(0) for name in _POSITIONS if name in tensors]
    for embedding in stored:
        rows = math.isqrt(embedding.shape[0])
        own = positions(config.width, (rows, rows), embedding.device)
        # half precision is off by 0.004; a learned embedding differs by far more
        if embedding.shape != own.shape or not torch.allclose(embedding.double(), own, atol=1e-2, rtol=0):
            raise ValueError("its position embedding is not the fixed one of sines and cosines")
        return rows
    return _GRID


def _subspace(tensors: Mapping[str, Tensor], config: JiTConfig, origin: str) -> Subspace:
    """Return the subspace of a file's buffers, or that of rank 0."""
    A, s = tensors.get(BASIS), tensors.get(SCALE)
    provenance = {"method": "published", "source": origin}
    if A is None:
        return Subspace(torch.eye(config.patch_dim, 0), 1.0, LAYOUT, SrgbSpace(), {**provenance, "rank": 0})
    if s is not None and float(s) != 1:
        raise ValueError(f"its {SCALE} is {float(s):g}; a model from scratch has 1")
    if A.ndim != 2 or A.shape[0] != config.patch_dim:
        raise ValueError(f"its {BASIS} is {list(A.shape)}; expected {config.patch_dim} rows")
    basis = nearest_basis(A).float()
    return Subspace(basis, 1.0, LAYOUT, SrgbSpace(), {**provenance, "rank": basis.shape[1]})
