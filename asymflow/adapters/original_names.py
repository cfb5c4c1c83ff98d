"""Weights of a pixel model under the names of the published FLUX.2 checkpoints, which ComfyUI and GGUF tools use.

In these names the queries, keys and values of a double block are one weight, and the modulation of the last norm has
its shift before its scale. `from_single_file` of diffusers converts them back. The subspace keeps its released names.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_MODULES = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_guidance_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_guidance_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
    "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
    "single_stream_modulation.linear": "single_stream_modulation.lin",
    "proj_out": "final_layer.linear",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
}
_DOUBLE = {
    "attn.to_out.0.weight": "img_attn.proj.weight",
    "attn.norm_q.weight": "img_attn.norm.query_norm.scale",
    "attn.norm_k.weight": "img_attn.norm.key_norm.scale",
    "attn.to_add_out.weight": "txt_attn.proj.weight",
    "attn.norm_added_q.weight": "txt_attn.norm.query_norm.scale",
    "attn.norm_added_k.weight": "txt_attn.norm.key_norm.scale",
    "ff.linear_in.weight": "img_mlp.0.weight",
    "ff.linear_out.weight": "img_mlp.2.weight",
    "ff_context.linear_in.weight": "txt_mlp.0.weight",
    "ff_context.linear_out.weight": "txt_mlp.2.weight",
}
_SINGLE = {
    "attn.to_qkv_mlp_proj.weight": "linear1.weight",
    "attn.to_out.weight": "linear2.weight",
    "attn.norm_q.weight": "norm.query_norm.scale",
    "attn.norm_k.weight": "norm.key_norm.scale",
}
_FUSED = {
    "img_attn.qkv.weight": ("attn.to_q.weight", "attn.to_k.weight", "attn.to_v.weight"),
    "txt_attn.qkv.weight": ("attn.add_q_proj.weight", "attn.add_k_proj.weight", "attn.add_v_proj.weight"),
}
_BLOCK = re.compile(r"(single_)?transformer_blocks\.(\d+)\.(.+)")


def to_original(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a pixel model under the published checkpoints' names.

    Args:
        tensors: State of an `AsymFlux2Transformer2DModel` without attached LoRA.

    Returns:
        Tensors by the checkpoints' names.

    Raises:
        ValueError: If a name is not one of the model's.
    """
    parts = {part: name for name, group in _FUSED.items() for part in group}
    converted = {}
    for name, tensor in tensors.items():
        match = _BLOCK.fullmatch(name)
        prefix = f"{'single' if match[1] else 'double'}_blocks.{match[2]}." if match else ""
        inner = match[3] if match else name
        if match and not match[1] and inner in parts:
            fused = parts[inner]
            if inner == _FUSED[fused][0]:
                stem = name.removesuffix(inner)
                converted[prefix + fused] = torch.cat([tensors[stem + part] for part in _FUSED[fused]])
        elif match:
            known = _SINGLE if match[1] else _DOUBLE
            if inner not in known:
                raise ValueError(f"{name} is not a weight of FLUX.2's transformer")
            converted[prefix + known[inner]] = tensor
        elif name in ("proj_buffer", "scale_buffer"):
            converted[name] = tensor
        elif name.removesuffix(".weight") in _MODULES:
            if name == "norm_out.linear.weight":
                tensor = torch.cat(tuple(reversed(tensor.chunk(2))))
            converted[f"{_MODULES[name.removesuffix('.weight')]}.weight"] = tensor
        else:
            raise ValueError(f"{name} is not a weight of FLUX.2's transformer")
    return converted
