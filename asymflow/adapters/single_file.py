"""Merged pixel model in one quantized file, for ComfyUI, GGUF tools and diffusers.

- GGUF: written by the package `gguf`, in the types that its own code quantizes (GGUF_TYPES; not the K-quants);
- scaled fp8: float8_e4m3fn with one float32 scale per weight (`weight_scale`), listed in the metadata of the
  safetensors file, as ComfyUI reads it.

Both use the names of the published FLUX.2 checkpoints. Quantized are the weights of blocks, modulations and the time
embedding. The first and last layers, the text input and the norms stay in 16 bits, and A and s in float32. The
transformer's config.json is written beside the file.
"""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from asymflow.adapters.defaults import SamplingDefaults
from asymflow.adapters.files import CONFIG
from asymflow.adapters.original_names import to_original
from asymflow.adapters.released import check_finite
from asymflow.atomic import atomic_file
from asymflow.models.network import GgufType
from asymflow.tensor_files import write_tensors

if TYPE_CHECKING:  # models load diffusers, which reading an adapter's files does without
    from asymflow.models.pixel import AsymFlux2Transformer2DModel

GGUF_TYPES: tuple[str, ...] = get_args(GgufType)
GGUF, FP8 = "asymflow-{type}.gguf", "asymflow-fp8.safetensors"
FP8_MAX = 448.0
"""Largest value of float8_e4m3fn"""
_FULL = ("img_in.", "txt_in.", "final_layer.", "guidance_in.", "proj_buffer", "scale_buffer")
_ARCHITECTURE = "flux"
"""`general.architecture` by which GGUF readers of image models know FLUX.1 and FLUX.2"""


def is_quantized(name: str, tensor: Tensor, block: int = 1) -> bool:
    """Return whether a weight is quantized.

    Args:
        name: Name in the published checkpoints.
        tensor: The weight.
        block: Values of a row that share a scale; rows of another width stay in 16 bits.

    Returns:
        True for matrices that are not one of the layers kept in 16 bits.
    """
    return tensor.ndim == 2 and not name.startswith(_FULL) and tensor.shape[1] % block == 0


def write_gguf(model: "AsymFlux2Transformer2DModel", folder: str | os.PathLike, type: GgufType = "q8_0") -> Path:
    """Write a merged pixel model as GGUF.

    Args:
        model: The model, in any float type.
        folder: Folder to write; it is created.
        type: Type of the quantized weights.

    Returns:
        The file.

    Raises:
        ValueError: If float16 cannot represent a value that is not quantized.
    """
    import gguf  # only where a file is written or read

    quantization = gguf.GGMLQuantizationType[type.upper()]
    block, _ = gguf.GGML_QUANT_SIZES[quantization]
    path = Path(folder) / GGUF.format(type=type.upper())
    with atomic_file(path) as partial:
        writer = gguf.GGUFWriter(partial, _ARCHITECTURE)
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{type.upper()}"])
        for key, value in _metadata(model).items():
            writer.add_string(f"asymflow.{key}", value)
        for name, tensor in to_original(model.state_dict()).items():
            if is_quantized(name, tensor, block):
                packed = gguf.quants.quantize(tensor.float().cpu().numpy(), quantization)
                writer.add_tensor(name, packed, raw_dtype=quantization)
            else:  # GGUF has no tensors without dimensions
                writer.add_tensor(name, _kept(name, tensor, torch.float16).reshape(tensor.shape or (1,)).numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    _write_config(model, folder)
    return path


def write_fp8(model: "AsymFlux2Transformer2DModel", folder: str | os.PathLike) -> Path:
    """Write a merged pixel model in scaled float8: weight = `weight` * `weight_scale`.

    Args:
        model: The model, in any float type.
        folder: Folder to write; it is created.

    Returns:
        The file.

    Raises:
        ValueError: If float16 cannot represent a value that is not quantized.
    """
    tensors, layers = {}, {}
    for name, tensor in to_original(model.state_dict()).items():
        if is_quantized(name, tensor):
            layer = name.removesuffix(".weight")
            scale = (tensor.float().abs().amax() / FP8_MAX).clamp_min(1e-12)
            tensors[name] = (tensor.float() / scale).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
            tensors[f"{layer}.weight_scale"] = scale
            layers[layer] = {"format": "float8_e4m3fn"}
        else:
            tensors[name] = _kept(name, tensor, torch.float16 if tensor.dtype == torch.float16 else torch.bfloat16)
    quantization = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}
    path = Path(folder) / FP8
    write_tensors(path, tensors, {"format": "pt", **_metadata(model), **quantization})
    _write_config(model, folder)
    return path


def load_single_file(path: str | os.PathLike, dtype: torch.dtype = torch.bfloat16) -> "AsymFlux2Transformer2DModel":
    """Load a file of `write_gguf` or `write_fp8` by diffusers' quantization classes; its weights stay quantized.

    Args:
        path: The file; config.json is beside it.
        dtype: Type of the computation and of the weights that are not quantized; A and s are float32.

    Returns:
        The pixel model, on the CPU, for `AsymFlux2KleinPipeline.from_pretrained(BASE, transformer=MODEL)`.

    Raises:
        ValueError: If the file or its config.json is missing or cannot be read, or they do not fit.
    """
    from diffusers import BFLQuantizationConfig, GGUFQuantizationConfig
    from diffusers.models.model_loading_utils import load_gguf_checkpoint

    from asymflow.models.pixel import AsymFlux2Transformer2DModel

    path = Path(path)
    if missing := [file.name for file in (path, path.with_name(CONFIG)) if not file.is_file()]:
        raise ValueError(
            f"{path.parent} lacks {' and '.join(missing)}; export the model with format=gguf or format=fp8"
        )
    quantization: Any
    try:
        if path.suffix == ".gguf":
            tensors, quantization = load_gguf_checkpoint(str(path)), GGUFQuantizationConfig(compute_dtype=dtype)
        else:
            tensors, quantization = load_file(path), BFLQuantizationConfig(compute_dtype=dtype)
            for name in [name for name in tensors if name.endswith(".weight_scale")]:
                rows = tensors[f"{name.removesuffix('_scale')}"].shape[0]
                tensors[name] = tensors[name].expand(rows).clone()  # diffusers has one scale per row
        if "scale_buffer" not in tensors:
            raise ValueError("it has no scale_buffer, so it is not a pixel model")
        tensors["scale_buffer"] = tensors["scale_buffer"].reshape(())
        model = AsymFlux2Transformer2DModel.from_single_file(
            tensors, config=str(path.parent), quantization_config=quantization, dtype=dtype, local_files_only=True
        )
    except (SafetensorError, OSError, LookupError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} cannot be read: {reason}") from None
    return model.eval()


def _kept(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a weight that is not quantized: A and s in float32, others in a 16-bit type."""
    kept = tensor.detach().cpu().to(torch.float32 if name in ("proj_buffer", "scale_buffer") else dtype)
    check_finite({name: kept})
    return kept.contiguous()


def _metadata(model: "AsymFlux2Transformer2DModel") -> dict[str, str]:
    """Return the strings that a file's metadata contains: sampling defaults, and what ComfyUI's nodes read."""
    sampling = SamplingDefaults(**(model.config.sampling or {})).to_metadata()
    return {**sampling, "sigma_min": str(model.config.sigma_min), "num_timesteps": str(model.config.num_timesteps)}


def _write_config(model: "AsymFlux2Transformer2DModel", folder: str | os.PathLike) -> None:
    with atomic_file(Path(folder) / CONFIG) as path:
        path.write_text(model.to_json_string(), "utf-8")
