"""Export formats of an adapter: ComfyUI, or merged with its base into a pipeline folder or one quantized file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from asymflow.adapters import load_merged, read_adapter, read_defaults, save_pth, write_adapter, write_comfyui
from asymflow.adapters.basis import find_subspace
from asymflow.models.backbone import Kind
from asymflow.models.gguf_base import find_gguf
from asymflow.models.latent import families, family_of, load_transformer
from pipelines.core import storage
from pipelines.core.base_models import check_base
from pipelines.core.config import ConfigError
from pipelines.core.scratch import scratch_folder
from pipelines.train.config import check_bitsandbytes
from pipelines.train.finetune.export_config import MERGED, ExportFormat, GgufType

PTH = "subspace.pth"
TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_COMFYUI_KINDS: tuple[Kind, ...] = ("asymflow", "latent", "ddt")
_STORED = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


def convert(
    adapter: str,
    format: ExportFormat,
    out: str,
    base: str = "",
    dtype: str | None = None,
    gguf: GgufType = "q8_0",
) -> str:
    """Convert an adapter (in the released format or ComfyUI's) into the folder `out`. Returns its URI.

    - released: with the subspace twice, as safetensors and as the released `.pth`;
    - comfyui: one file of tensors, with the subspace beside it;
    - merged: a folder for `AsymFlux2KleinPipeline.from_pretrained(out)`, in `dtype`; in half precision the merged
      weights are rounded once more than base and adapter are;
    - nf4: the same, with the transformer quantized by bitsandbytes;
    - fp8, gguf: the merged transformer in one quantized file (`asymflow.adapters.single_file`).

    Args:
        adapter: folder or S3 URI.
        format: one of the above.
        out: folder or S3 URI.
        base: folder of the latent model, for the formats in MERGED.
        dtype: data type in which they are merged; None for the base's.
        gguf: type of the quantized weights, for gguf.

    Raises:
        ConfigError: the base cannot be merged with.
        ValueError: the adapter is damaged, of another kind or of another base.
    """
    if format in MERGED:
        check_merge(base, format)
    with storage.local_folder(adapter) as folder, scratch_folder() as scratch:
        if format in MERGED:
            merge(folder, base, scratch, TYPES[dtype] if dtype else stored_type(base), format, gguf)
        else:
            tensors, config = read_adapter(folder)
            subspace, defaults = find_subspace(folder, tensors), read_defaults(folder)
            if format == "comfyui":
                check_comfyui(config)
                write_comfyui(scratch, tensors, config, subspace, defaults)
            else:
                write_adapter(scratch, tensors, config, subspace, defaults)
                save_pth(subspace, scratch / PTH)
        storage.put_folder(scratch, storage.absolute(out), last="model_index.json")
    return storage.absolute(out)


def check_comfyui(config: Mapping[str, Any]) -> None:
    """Raise ConfigError unless ComfyUI's tensor names are known for the model of an adapter's config.json."""
    found = config.get("_class_name")
    named = [family.backbone.adapter_classes for family in families() if family.backbone.has_comfyui_names]
    if not any(found == name for classes in named for kind, name in classes.items() if kind in _COMFYUI_KINDS):
        raise ConfigError(f"format=comfyui: not supported for a {found}; use format=released")


def check_merge(base: str, format: ExportFormat) -> None:
    """Raise ConfigError unless a base can be merged with, and the packages of a format are installed."""
    whole = format in ("merged", "nf4")
    check_base(base, ("transformer", "scheduler") if whole else ("transformer",), text=whole)
    if not family_of(base).pixel_pipeline:
        raise ConfigError(f"format={format}: base={base!r} has no merged form; sample with base and adapter")
    if find_gguf(base):
        raise ConfigError(f"format={format}: base={base!r} is quantized; give the full base to merge with")
    if format == "nf4":
        check_bitsandbytes("format=nf4")


def merge(
    adapter: Path, base: str, out: Path, dtype: torch.dtype, format: ExportFormat = "merged", gguf: GgufType = "q8_0"
) -> None:
    """Write an adapter merged into its base, in one of the formats in MERGED."""
    from diffusers.utils.logging import disable_progress_bar

    from asymflow.adapters.nf4 import quantize_nf4
    from asymflow.adapters.single_file import write_fp8, write_gguf
    from asymflow.diffusers_pipeline import AsymFlux2KleinPipeline

    disable_progress_bar()  # of model loading
    if format in ("fp8", "gguf"):
        model, _ = load_merged(load_transformer(base, dtype), adapter)
        if format == "fp8":
            write_fp8(model, out)
        else:
            write_gguf(model, out, gguf)
        return
    pipeline = AsymFlux2KleinPipeline.from_pretrained(base, adapter=adapter, dtype=dtype)
    if format == "nf4":
        quantize_nf4(pipeline.transformer)
    pipeline.save_pretrained(out)


def stored_type(base: str) -> torch.dtype:
    """Return the data type of the transformer's weights in a pipeline folder."""
    files = sorted((Path(base) / "transformer").glob("*.safetensors"))
    if not files:
        raise ConfigError(f"base={base!r}: its transformer has no safetensors file")
    with safe_open(str(files[0]), framework="pt") as file:
        found = file.get_slice(next(iter(file.keys()))).get_dtype()
    if found not in _STORED:
        raise ConfigError(f"base={base!r}: its transformer is stored as {found}; give the dtype to merge in")
    return TYPES[_STORED[found]]
