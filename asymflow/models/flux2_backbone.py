"""FLUX.2's transformer as a backbone, that of klein and of dev; importable without torch."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from asymflow.models.backbone import Backbone
from asymflow.models.geometry import LORA_TARGETS, block_memory, network

if TYPE_CHECKING:
    from torch import Tensor


def _run(*arguments: Any) -> "Tensor":
    from asymflow.models.flux2 import run_transformer  # torch: plans do without it

    return run_transformer(*arguments)


def _pack(latents: "Tensor", side: int) -> "Tensor":
    from asymflow.models.flux2 import pack_latents

    return pack_latents(latents, side)


def _lora_targets(config: Mapping[str, Any]) -> str:
    return LORA_TARGETS


def _token_width(config: Mapping[str, Any]) -> int:
    return config["in_channels"]


FLUX2 = Backbone(
    transformer="Flux2Transformer2DModel",
    first="x_embedder",
    last_norm="norm_out",
    last="proj_out",
    text_input="context_embedder",
    lora_targets=_lora_targets,
    run=_run,
    pack=_pack,
    token_width=_token_width,
    network=network,
    block_memory=block_memory,
    block_names={"transformer_blocks": "double blocks", "single_transformer_blocks": "single blocks"},
    image_blocks=("transformer_blocks", "single_transformer_blocks"),
    image_free=(
        r"context_embedder|time_guidance_embed\..+|.+_modulation(_img|_txt)?\.linear|norm_out\.linear"
        r"|transformer_blocks\.0\.attn\.add_[qkv]_proj"
    ),
    adapter_classes={
        "asymflow": "AsymFlux2Transformer2DModel",
        "latent": "Flux2Transformer2DModelAdapter",
        "ddt": "DdtFlux2Transformer2DModelAdapter",
        "l2p": "L2pFlux2Transformer2DModelAdapter",
    },
    adapter_keys=(
        "num_layers",
        "num_single_layers",
        "num_attention_heads",
        "attention_head_dim",
        "joint_attention_dim",
        "timestep_guidance_channels",
        "axes_dims_rope",
        "rope_theta",
        "mlp_ratio",
        "guidance_embeds",
        "eps",
    ),
    adapter_constants={"num_timesteps": 1},
    takes_references=True,
    has_comfyui_names=True,
)
