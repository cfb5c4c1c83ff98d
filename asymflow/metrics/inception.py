"""Inception features of images, for FID, sFID, pFID, Inception Score, precision and recall."""

import hashlib
import io
import pickle
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from asymflow.metrics.image_rules import RESIZES, ROUNDINGS, prepare
from asymflow.metrics.weights import find

FILE = "weights-inception-2015-12-05-6726825d.pth"
SCRIPTS = {
    "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4": "NVIDIA's inception-2015-12-05.pt",
}
"""TorchScript is code: only these files, by their SHA-256, are executed"""
NEEDED = (
    f"the FID Inception of 2015: torch-fidelity's {FILE} (github.com/toshas/torch-fidelity, releases) or the same as "
    "safetensors, or NVIDIA's TorchScript inception-2015-12-05.pt"
)


@dataclass(frozen=True)
class InceptionFeatures:
    """Features of B images, float32 on the CPU."""

    pool: Tensor
    """pool3 (B, 2048)"""
    logits: Tensor
    """(B, 1008), without the output's bias: for the Inception Score"""
    maybe_spatial: Tensor | None = field(repr=False)
    """Spatial features (B, 2023), or None; read `spatial`"""

    @property
    def spatial(self) -> Tensor:
        """Spatial features (B, 2023), as in an ADM reference: 7 channels of Mixed_6d.branch1x1.

        They are ordered (17, 17, 7).

        Raises:
            ValueError: If the network is NVIDIA's, which does not return them.
        """
        if self.maybe_spatial is None:
            raise ValueError(f"NVIDIA's TorchScript gives no spatial features; sFID needs torch-fidelity's {FILE}")
        return self.maybe_spatial


class Inception:
    """Network behind a rule of resizing and a rule of rounding, see `image_rules`.

    It runs in float32, without TF32 on a GPU.

    Args:
        network: A module of `inception_network`: uint8 images to pool3, logits, and spatial features or None.
        identity: Name of the weights in the protocol.
        resize: One of RESIZES.
        rounding: One of ROUNDINGS.

    Raises:
        ValueError: For another rule.
    """

    def __init__(
        self, network: nn.Module, identity: str, resize: str = "bicubic", rounding: str = "truncate_half_up"
    ) -> None:
        if resize not in RESIZES or rounding not in ROUNDINGS:
            raise ValueError(f"{resize!r}, {rounding!r}: expected one of {RESIZES} and one of {ROUNDINGS}")
        self.network, self.resize, self.rounding = network.eval(), resize, rounding
        self.protocol: dict[str, Any] = {
            "metric": "inception-2015-12-05",
            "model": identity,
            "network": type(network).__name__,
            "resize": resize,
            "rounding": rounding if resize == "bicubic" else None,  # the others change no level
            "input": "tensorflow 1 bilinear to 299, (x - 128) / 128",
            "precision": "float32",
        }

    @classmethod
    def load(
        cls,
        source: str,
        revision: str = "main",
        device: str | torch.device = "cpu",
        file: str = FILE,
        resize: str = "bicubic",
        rounding: str = "truncate_half_up",
    ) -> "Inception":
        """Load the network; its kind is detected from the content of the file.

        Args:
            source: File, folder or repository of the weights.
            revision: Revision of the repository.
            device: Device of the network.
            file: File in the folder or repository.
            resize: One of RESIZES.
            rounding: One of ROUNDINGS.

        Returns:
            The network.

        Raises:
            MissingWeights: If the file is missing.
            ValueError: If it contains other weights, or is TorchScript other than SCRIPTS.
        """
        from asymflow.metrics.inception_network import Inception2015, ScriptedInception  # torchvision takes a second

        found = find(source, NEEDED, file, revision)
        network: nn.Module
        if _is_script(found.path):
            network = ScriptedInception(_known_script(found.path))
        else:
            with torch.device("meta"):
                network = Inception2015()
            try:
                network.load_state_dict(_weights(found.path), assign=True)
            except RuntimeError as error:
                raise ValueError(f"{found.path} is not {NEEDED}: {error}") from error
            network.requires_grad_(False)
        return cls(network.to(device), found.identity, resize, rounding)

    @torch.no_grad()
    def features(self, images: Tensor) -> InceptionFeatures:
        """Return the features of images.

        Args:
            images: sRGB images, uint8 (B, 3, H, W), on any device.

        Returns:
            The features.

        Raises:
            ValueError: If the rule of resizing does not allow the images.
        """
        device = next(iter(self.network.state_dict().values())).device  # a TorchScript need not have parameters
        prepared = prepare(images.to(device), self.resize, self.rounding)
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            pool, logits, spatial = self.network(prepared)
        return InceptionFeatures(pool.float().cpu(), logits.float().cpu(), _cpu(spatial))


def _cpu(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.float().cpu()


def _is_script(path: Path) -> bool:
    """Return whether a file is TorchScript: a zip that contains code, which no checkpoint does."""
    if path.suffix == ".safetensors" or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def _known_script(path: Path) -> nn.Module:
    """Load TorchScript from the bytes that were hashed, since a file may change between two reads."""
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest not in SCRIPTS:
        known = ", ".join(f"{name} ({sha256})" for sha256, name in SCRIPTS.items())
        raise ValueError(
            f"{path} is TorchScript, which runs code of its own, and its SHA-256 {digest} is not that of {known}; give "
            f"torch-fidelity's {FILE}, or the same as safetensors, which contain only tensors"
        )
    return torch.jit.load(io.BytesIO(content), map_location="cpu")


def _weights(path: Path) -> dict[str, Tensor]:
    """Load weights in float32."""
    try:
        read: Any
        if path.suffix == ".safetensors":
            read = load_file(path)
        else:
            read = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} is not {NEEDED}: {error}") from error
    if not isinstance(read, dict) or not all(isinstance(value, Tensor) for value in read.values()):
        raise ValueError(f"{path} is not {NEEDED}: it holds more than named tensors")
    for name, value in read.items():
        if not torch.isfinite(value).all():
            raise ValueError(f"{path}: {name} holds NaN or infinite values")
    # A plain dict: batch norm counters may then be missing, and nothing reads them
    return {name: value.float() if value.is_floating_point() else value for name, value in read.items()}
