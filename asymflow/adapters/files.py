"""An adapter's folder: which files lie in it, each written whole or not at all.

- `diffusion_pytorch_model.safetensors`: the trained modules, LoRA, and the subspace (`proj_buffer`, `scale_buffer`);
- `config.json`: what the model must be for them to fit;
- `subspace.safetensors`: A and s in float32, for in bfloat16 A is off by 7e-4 in orthonormality.

For ComfyUI `asymflow_comfyui.safetensors` takes the place of the first two: config.json's content is in its metadata.
"""

import json
import math
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from asymflow.adapters.basis import SUBSPACE
from asymflow.adapters.comfyui import from_comfyui, to_comfyui
from asymflow.adapters.defaults import SamplingDefaults
from asymflow.outside_text import decode_text, parse_json
from asymflow.subspace import Subspace
from asymflow.tensor_files import sort_metadata

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
    """Write the released format. `defaults` say how the model wants to be sampled; without, nothing is said."""
    folder = Path(folder)
    _write_tensors(folder / WEIGHTS, tensors, defaults.to_metadata() if defaults else {})
    if subspace is not None:
        subspace.save(folder / SUBSPACE)
    with _whole(folder / CONFIG) as path:
        path.write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def write_comfyui(
    folder: str | os.PathLike,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    subspace: Subspace,
    defaults: SamplingDefaults,
) -> None:
    """Write the same adapter for ComfyUI; `tensors` are named as in the released file."""
    extra = {_CONFIG_KEY: json.dumps(config), _LOG_SHIFT_KEY: str(math.log(defaults.shift))}
    _write_tensors(Path(folder) / COMFYUI, to_comfyui(tensors), defaults.to_metadata() | extra)
    subspace.save(Path(folder) / SUBSPACE)


def read_adapter(folder: str | os.PathLike) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, named as in the released file, and config.json of an adapter of either format.

    ValueError where files are missing or cannot be read.
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
    """How an adapter wants to be sampled: the released model's numbers where its file says nothing."""
    files = [path for path in (Path(folder) / WEIGHTS, Path(folder) / COMFYUI) if path.is_file()]
    if not files:
        raise ValueError(f"there is no adapter in {folder}, it lacks {WEIGHTS}")
    try:
        with safe_open(str(files[0]), framework="pt") as file:
            return SamplingDefaults.from_metadata(file.metadata() or {})
    except (SafetensorError, ValueError, TypeError) as error:
        raise ValueError(f"{files[0]} cannot be read: {error}") from error


def _write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with _whole(path) as partial:
        save_file({n: t.cpu().contiguous() for n, t in tensors.items()}, partial, {"format": "pt", **metadata})
        sort_metadata(partial)


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
        raise ValueError(f"the adapter in {path.parent} cannot be read: {path.name} is no JSON object")
    return config


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A path to write to; the file then appears whole, or not at all."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
