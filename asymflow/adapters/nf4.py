"""Merged pixel model in NF4, as a folder that diffusers loads with its own quantization class."""

import torch
from diffusers import BitsAndBytesConfig
from diffusers.quantizers.auto import DiffusersAutoQuantizer
from torch import nn

from asymflow.models.network import NF4_BLOCK
from asymflow.models.pixel import TRAINED_WEIGHTS, AsymFlux2Transformer2DModel
from asymflow.models.quantized import quantize_linears

_FULL = (*(name.removesuffix(".weight") for name in TRAINED_WEIGHTS), "context_embedder")
"""Linear layers that keep their type: the trained ones, and the text input"""


def quantize_nf4(model: AsymFlux2Transformer2DModel) -> None:
    """Quantize a merged pixel model in place, as diffusers does with a BitsAndBytesConfig, on any device.

    `save_pretrained` then writes the quantized weights, and `from_pretrained` reads them; diffusers needs an
    accelerator to read. Layers of the model that keep their type are in `llm_int8_skip_modules`.

    Args:
        model: The model; it computes in the type that it has now.
    """
    dtype = model.dtype
    linears = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    kept = [name for name, layer in linears.items() if name in _FULL or layer.in_features % NF4_BLOCK]
    quantize_linears(model, [name for name in linears if name not in kept])
    model.requires_grad_(False)
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=torch.uint8,
        llm_int8_skip_modules=kept,
    )
    model.register_to_config(quantization_config=config)
    model.hf_quantizer = DiffusersAutoQuantizer.from_config(config)
