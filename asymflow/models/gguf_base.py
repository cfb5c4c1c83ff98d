"""Base transformer in a GGUF file, for cards with little memory; read by diffusers.

The file is in the folder `transformer` of a pipeline folder, beside its config.json and instead of its safetensors
files, under the names of the published checkpoints or of diffusers.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def find_gguf(folder: str | Path) -> Path | None:
    """Return the GGUF file of a pipeline folder's transformer.

    Args:
        folder: The folder.

    Returns:
        The file; None if the transformer is not stored as GGUF.

    Raises:
        ValueError: If there are several, or other weights beside it.
    """
    transformer = Path(folder) / "transformer"
    found = sorted(transformer.glob("*.gguf"))
    others = sorted(transformer.glob("*.safetensors")) if found else []
    if len(found) + len(others) > 1:
        names = ", ".join(path.name for path in [*found, *others][:3])
        raise ValueError(f"{transformer} has several files of weights, {names}; keep one GGUF file, or none")
    return found[0] if found else None


def load_gguf(cls: Any, path: Path, dtype: "torch.dtype", full: Iterable[str]) -> Any:
    """Load a transformer from a GGUF file; each use of a layer dequantizes its weight.

    Args:
        cls: Class of the transformer in diffusers.
        path: The file, beside the transformer's config.json.
        dtype: Type of the computation, and of weights that the file does not quantize.
        full: Names of modules whose weights are dequantized once.

    Returns:
        The transformer, on the CPU.

    Raises:
        ValueError: If the package `gguf` is missing, or the file cannot be read.
    """
    from diffusers import GGUFQuantizationConfig  # with torch: geometries are read without it
    from torch import nn

    quantization = GGUFQuantizationConfig(compute_dtype=dtype)
    quantization.modules_to_not_convert = list(full)
    try:
        transformer = cls.from_single_file(
            str(path),
            config=str(path.parent),
            quantization_config=quantization,
            dtype=dtype,
            local_files_only=True,
        )
    except ImportError:
        raise ValueError(f"{path} is read by the package gguf, which is not installed: pip install gguf") from None
    except (OSError, LookupError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} cannot be read: {reason}") from None
    for module in transformer.modules():
        for name, value in list(module.named_parameters(recurse=False)):
            if not isinstance(value, nn.Parameter):  # diffusers leaves dequantized weights as plain tensors
                setattr(module, name, nn.Parameter(value, requires_grad=False))
    return transformer
