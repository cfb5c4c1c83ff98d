"""CLIP as open_clip has it: loaded from one file of weights, and what pictures have to become for it."""

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
    """A model, in float32, with its tokenizer."""

    model: Any
    tokenizer: Any
    identity: str

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def size(self) -> int:
        """Side of the square that it looks at."""
        found = self.model.visual.image_size
        return found[0] if isinstance(found, tuple | list) else found

    def normalise(self, pixels: Tensor) -> Tensor:
        """(B, 3, size, size) in [0, 1] -> with the mean and deviation that the model was trained with."""
        mean, std = (torch.tensor(v, device=pixels.device).view(3, 1, 1) for v in _statistics(self.model))
        return (pixels - mean) / std

    @torch.inference_mode()
    def images(self, pixels: Tensor) -> Tensor:
        """Features (B, dim) of unit length, of normalised pixels."""
        return F.normalize(self.model.encode_image(pixels.to(self.device)).float(), dim=-1)

    @torch.inference_mode()
    def texts(self, texts: list[str]) -> Tensor:
        """Features (B, dim) of unit length; texts longer than the model's context are cut."""
        return F.normalize(self.model.encode_text(self.tokenizer(texts).to(self.device)).float(), dim=-1)

    def cosines(self, pixels: Tensor, texts: list[str]) -> Tensor:
        """(B,) of each picture with its own text, float32 on the CPU. Raises ValueError for other numbers of them."""
        if len(pixels) != len(texts):
            raise ValueError(f"there are {len(pixels)} pictures and {len(texts)} texts")
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
    """From a file of weights, or `file` in a folder or repository: safetensors, or a checkpoint that is read as tensors
    alone. `architecture` is open_clip's name, or a .json file of its kind, known by the file's name from then on;
    `quick_gelu` says otherwise than it about the activation.

    Raises:
        MissingWeights: there is none, or it is of another architecture.
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
        raise MissingWeights(f"open_clip knows no architecture {architecture!r}: {error}") from None
    try:
        model.load_state_dict(_read(found.path))
    except RuntimeError as error:
        raise MissingWeights(f"{found.path} does not hold {architecture}: {error}") from error
    return OpenClip(model.to(device).eval(), open_clip.get_tokenizer(architecture), found.identity)


def _read(path: Path) -> dict[str, Tensor]:
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
        raise MissingWeights(f"{path} holds no weights by name, but a {type(state).__name__}")
    return {name.removeprefix("module."): value for name, value in state.items()}


def _statistics(model: Any) -> tuple[Any, Any]:
    from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    mean, std = getattr(model.visual, "image_mean", None), getattr(model.visual, "image_std", None)
    return mean or OPENAI_DATASET_MEAN, std or OPENAI_DATASET_STD
