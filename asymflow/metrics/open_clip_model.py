"""CLIP in open_clip: loading from one file of weights, and normalization of images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from asymflow.metrics.weights import MissingWeights, find

FILE = "open_clip_model.safetensors"


@dataclass(frozen=True)
class OpenClip:
    """Model in float32, with its tokenizer."""

    model: Any
    """open_clip's model"""
    tokenizer: Any
    """Maps a list of texts to token IDs"""
    identity: str
    """Name of the weights in protocols"""

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return next(self.model.parameters()).device

    @property
    def size(self) -> int:
        """Side in pixels of the model's square input."""
        found = self.model.visual.image_size
        return found[0] if isinstance(found, tuple | list) else found

    def normalise(self, pixels: Tensor) -> Tensor:
        """Normalize pixels with the mean and standard deviation of the model's training.

        Args:
            pixels: Images (B, 3, size, size) in [0, 1].

        Returns:
            Normalized pixels of the same shape.
        """
        mean, std = (torch.tensor(v, device=pixels.device).view(3, 1, 1) for v in _statistics(self.model))
        return (pixels - mean) / std

    @torch.inference_mode()
    def images(self, pixels: Tensor) -> Tensor:
        """Return the features of images.

        Args:
            pixels: Normalized pixels (B, 3, size, size).

        Returns:
            Features of unit length (B, dim), float32.
        """
        return F.normalize(self.model.encode_image(pixels.to(self.device)).float(), dim=-1)

    @torch.inference_mode()
    def texts(self, texts: list[str]) -> Tensor:
        """Return the features of texts.

        Args:
            texts: Texts; those longer than the model's context are cut.

        Returns:
            Features of unit length (B, dim), float32.
        """
        return F.normalize(self.model.encode_text(self.tokenizer(texts).to(self.device)).float(), dim=-1)

    def cosines(self, pixels: Tensor, texts: list[str]) -> Tensor:
        """Return the cosine of each image with its own text.

        Args:
            pixels: Normalized pixels (B, 3, size, size).
            texts: One text per image.

        Returns:
            Cosines (B,), float32 on the CPU.

        Raises:
            ValueError: For another number of texts.
        """
        if len(pixels) != len(texts):
            raise ValueError(f"there are {len(pixels)} images and {len(texts)} texts")
        return (self.images(pixels) * self.texts(texts)).sum(-1).cpu()


def load_open_clip(
    source: str,
    needed: str,
    architecture: str,
    file: str = FILE,
    revision: str = "main",
    device: str = "cpu",
    quick_gelu: bool | None = None,
) -> OpenClip:
    """Load a CLIP from safetensors, or from a checkpoint that is read as tensors only.

    Args:
        source: File, folder or repository of the weights.
        needed: Description of the weights and their origin, for errors.
        architecture: open_clip's name of the architecture, or its .json file.
        file: File in the folder or repository.
        revision: Revision of the repository.
        device: Device of the model.
        quick_gelu: Whether the activation is QuickGELU; None: as the architecture says.

    Returns:
        The model.

    Raises:
        MissingWeights: If the weights are missing or of another architecture.
    """
    found = find(source, needed, file, revision)
    import open_clip

    options = {} if quick_gelu is None else {"quick_gelu": quick_gelu}
    try:
        if architecture.endswith(".json"):
            open_clip.add_model_config(Path(architecture))
            architecture = Path(architecture).stem
        model = open_clip.create_model(architecture, pretrained=None, precision="fp32", **options)
    except (RuntimeError, FileNotFoundError) as error:
        raise MissingWeights(f"open_clip has no architecture {architecture!r}: {error}") from None
    try:
        model.load_state_dict(read_weights(found.path))
    except RuntimeError as error:
        raise MissingWeights(f"{found.path} does not contain {architecture}: {error}") from error
    return OpenClip(model.to(device).eval(), open_clip.get_tokenizer(architecture), found.identity)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read weights by name from safetensors, or from a checkpoint that is read as tensors only.

    Args:
        path: The file.

    Returns:
        The weights.

    Raises:
        MissingWeights: If the file holds something else.
    """
    import pickle

    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise MissingWeights(f"{path} cannot be read as weights: {reason}") from None
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict):
        raise MissingWeights(f"{path} is a {type(state).__name__}; expected weights by name")
    return {name.removeprefix("module."): value for name, value in state.items()}


def _statistics(model: Any) -> tuple[Any, Any]:
    from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    mean, std = getattr(model.visual, "image_mean", None), getattr(model.visual, "image_std", None)
    return mean or OPENAI_DATASET_MEAN, std or OPENAI_DATASET_STD
