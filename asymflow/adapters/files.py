"""Files of an adapter's folder, each written atomically.

- `diffusion_pytorch_model.safetensors`: the trained modules, LoRA, and the subspace (`proj_buffer`, `scale_buffer`);
- `config.json`: the model that they fit;
- `subspace.safetensors`: A and s in float32, since A in bfloat16 is off by 7e-4 in orthonormality.

For ComfyUI, `asymflow_comfyui.safetensors` replaces the first two; its metadata has the content of config.json.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from asymflow.adapters.basis import SUBSPACE
from asymflow.adapters.comfyui import from_comfyui, to_comfyui
from asymflow.adapters.defaults import SamplingDefaults
from asymflow.atomic import atomic_file
from asymflow.subspace import Subspace
from asymflow.tensor_files import write_tensors
from asymflow.text_files import decode_text, parse_json

WEIGHTS, CONFIG = "diffusion_pytorch_model.safetensors", "config.json"
COMFYUI = "asymflow_comfyui.safetensors"
_CONFIG_KEY, _LOG_SHIFT_KEY = "config", "log_shift"


def write_adapter(
    folder: str | os.PathLike,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    subspace: Subspace | None,
    defaults: SamplingDefaults | None = None,
) -> None:
    """Write an adapter in the released format.

    Args:
        folder: Folder to write; it is created.
        tensors: Tensors by their names in the released file.
        config: Content of config.json.
        subspace: Subspace of the model; None: the latent baseline, which has none.
        defaults: Sampling defaults; None: none are written.
    """
    folder = Path(folder)
    write_tensors(folder / WEIGHTS, tensors, {"format": "pt", **(defaults.to_metadata() if defaults else {})})
    if subspace is not None:
        subspace.save(folder / SUBSPACE)
    with atomic_file(folder / CONFIG) as path:
        path.write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def write_comfyui(
    folder: str | os.PathLike,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    subspace: Subspace,
    defaults: SamplingDefaults,
) -> None:
    """Write an adapter for ComfyUI.

    Args:
        folder: Folder to write; it is created.
        tensors: Tensors by their names in the released file.
        config: Content of config.json.
        subspace: Subspace of the model.
        defaults: Sampling defaults.
    """
    extra = {_CONFIG_KEY: json.dumps(config), _LOG_SHIFT_KEY: str(math.log(defaults.shift))}
    write_tensors(Path(folder) / COMFYUI, to_comfyui(tensors), {"format": "pt", **defaults.to_metadata(), **extra})
    subspace.save(Path(folder) / SUBSPACE)


def read_adapter(folder: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read an adapter of either format.

    Args:
        folder: Folder of the adapter.

    Returns:
        Tensors by their names in the released file, and the content of config.json.

    Raises:
        ValueError: If files are missing or cannot be read.
    """
    folder = Path(folder)
    if (folder / COMFYUI).is_file() and not (folder / WEIGHTS).is_file():
        tensors, metadata = _read_tensors(folder / COMFYUI)
        return from_comfyui(tensors), _parse(metadata.get(_CONFIG_KEY, "").encode(), folder / COMFYUI)
    missing = [name for name in (WEIGHTS, CONFIG) if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"there is no adapter in {folder}, it lacks {' and '.join(missing)}")
    return _read_tensors(folder / WEIGHTS)[0], _parse((folder / CONFIG).read_bytes(), folder / CONFIG)


def read_defaults(folder: str | os.PathLike) -> SamplingDefaults:
    """Read the sampling defaults of an adapter.

    Args:
        folder: Folder of the adapter.

    Returns:
        The defaults; those of the released model if the file has none.

    Raises:
        ValueError: If the file is missing or cannot be read.
    """
    files = [path for path in (Path(folder) / WEIGHTS, Path(folder) / COMFYUI) if path.is_file()]
    if not files:
        raise ValueError(f"there is no adapter in {folder}, it lacks {WEIGHTS}")
    try:
        with safe_open(str(files[0]), framework="pt") as file:
            return SamplingDefaults.from_metadata(file.metadata() or {})
    except (SafetensorError, ValueError, TypeError) as error:
        raise ValueError(f"{files[0]} cannot be read: {error}") from error


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"the adapter in {path.parent} cannot be read: {path.name}: {error}") from error


def _parse(data: bytes, path: Path) -> dict[str, Any]:
    try:
        config = parse_json(decode_text(data, path.name), path.name)
    except ValueError as error:
        raise ValueError(f"the adapter in {path.parent} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"the adapter in {path.parent} cannot be read: {path.name} is not a JSON object")
    return config
