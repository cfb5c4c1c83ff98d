"""Export formats of an adapter: ComfyUI, or merged with its base into a pipeline folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from asymflow.adapters import read_adapter, read_defaults, save_pth, write_adapter, write_comfyui
from asymflow.adapters.basis import find_subspace
from asymflow.models.backbone import Kind
from asymflow.models.latent import families, family_of
from pipelines.core import storage
from pipelines.core.base_models import check_base
from pipelines.core.config import ConfigError
from pipelines.core.scratch import scratch_folder
from pipelines.train.finetune.export_config import ExportFormat

PTH = "subspace.pth"
TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
_COMFYUI_KINDS: tuple[Kind, ...] = ("asymflow", "latent", "ddt")
_STORED = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


def convert(adapter: str, format: ExportFormat, out: str, base: str = "", dtype: str | None = None) -> str:
    """Convert an adapter (in the released format or ComfyUI's) into the folder `out`. Returns its URI.

    - released: with the subspace twice, as safetensors and as the released `.pth`;
    - comfyui: one file of tensors, with the subspace beside it;
    - merged: a folder for `AsymFlux2KleinPipeline.from_pretrained(out)`, in `dtype`; in half precision the merged
      weights are rounded once more than base and adapter are.

    Args:
        adapter: folder or S3 URI.
        format: one of the above.
        out: folder or S3 URI.
        base: folder of the latent model, for merged.
        dtype: data type of merged weights; None for the base's.

    Raises:
        ConfigError: the base cannot be merged with.
        ValueError: the adapter is damaged, of another kind or of another base.
    """
    if format == "merged":
        check_base(base, ("transformer", "scheduler"), text=True)
        if not family_of(base).pixel_pipeline:
            raise ConfigError(f"format=merged: base={base!r} has no merged form; sample with base and adapter")
    with storage.local_folder(adapter) as folder, scratch_folder() as scratch:
        if format == "merged":
            merge(folder, base, scratch, TYPES[dtype] if dtype else stored_type(base))
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


def merge(adapter: Path, base: str, out: Path, dtype: torch.dtype) -> None:
    """Write the pipeline of an adapter merged into its base."""
    from diffusers.utils.logging import disable_progress_bar

    from asymflow.diffusers_pipeline import AsymFlux2KleinPipeline

    disable_progress_bar()  # of model loading
    pipeline = AsymFlux2KleinPipeline.from_pretrained(base, adapter=adapter, dtype=dtype)
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
