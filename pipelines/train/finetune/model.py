"""Build the model to train, and load a finetuned one."""

from typing import Any

import torch
from diffusers.utils.logging import disable_progress_bar

from asymflow.adapters import load_adapter
from asymflow.adapters.released import model_classes
from asymflow.models.adapted import AdaptedModel
from asymflow.models.latent import load_transformer
from asymflow.subspace import Subspace
from pipelines.sample.adapter_files import adapter_files
from pipelines.train.devices import precision
from pipelines.train.finetune.config import FinetuneSettings

disable_progress_bar()  # of model loading


def adapt(settings: FinetuneSettings, transformer: Any, subspace: Subspace) -> AdaptedModel:
    """Return the model of `settings.model` around a latent transformer, with its adapters, the same on every worker."""
    torch.manual_seed(settings.seed)
    build: Any = model_classes()[settings.model]
    model: AdaptedModel = build.from_latent(transformer, subspace, **settings.head_sizes)
    if settings.lora:
        model.add_lora(settings.lora.rank, settings.lora.alpha, settings.lora.dropout)
    return model


def build_model(settings: FinetuneSettings, subspace: Subspace, device: torch.device | str = "cpu") -> AdaptedModel:
    """Return the model to train, on the CPU except for quantized weights, which are on `device`."""
    resources = settings.resources
    dtype = precision(resources)
    transformer = load_transformer(settings.base, dtype)
    model = adapt(settings, transformer, subspace)
    if settings.start_from:
        with adapter_files(settings.start_from) as folder:
            load_adapter(model, folder or "")
    model.set_precision(dtype)
    if settings.base_quantization:
        model.quantize_base(device, settings.base_quantization)
    if resources.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    if resources.compile:
        model.compile_blocks()
    return model.train()
