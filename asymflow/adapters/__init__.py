"""Adapters: what finetuning changed of a FLUX.2 transformer, in files that other programs read.

released.py        a model's trained values <-> the released file's tensors, checked against the model
files.py           the folder that contains them
basis.py           the subspace beside them
comfyui.py         the same tensors for ComfyUI
original_names.py  a merged model's weights under the published checkpoints' names
single_file.py     a merged model in one quantized file, GGUF or scaled float8
nf4.py             a merged model in NF4
merge.py           base and adapter -> one pixel model
attach.py          base and adapter -> a pixel model whose LoRA stays apart, for quantized bases
restore.py         base and adapter -> our own class of any kind
defaults.py        sampling defaults of a model
"""

from asymflow.adapters.attach import attach, load_attached
from asymflow.adapters.basis import SUBSPACE, load_pth, save_pth
from asymflow.adapters.defaults import SamplingDefaults
from asymflow.adapters.files import COMFYUI, CONFIG, WEIGHTS, read_adapter, read_defaults, write_adapter, write_comfyui
from asymflow.adapters.merge import load_merged, merge
from asymflow.adapters.released import (
    adapter_config,
    from_released,
    load_adapter,
    released_name,
    save_adapter,
    to_released,
)
from asymflow.adapters.restore import kind_of, restore
from asymflow.adapters.single_file import load_single_file, write_fp8, write_gguf

__all__ = [
    "COMFYUI",
    "CONFIG",
    "SUBSPACE",
    "WEIGHTS",
    "SamplingDefaults",
    "adapter_config",
    "attach",
    "from_released",
    "kind_of",
    "load_adapter",
    "load_attached",
    "load_merged",
    "load_pth",
    "load_single_file",
    "merge",
    "read_adapter",
    "read_defaults",
    "released_name",
    "restore",
    "save_adapter",
    "save_pth",
    "to_released",
    "write_adapter",
    "write_comfyui",
    "write_fp8",
    "write_gguf",
]
