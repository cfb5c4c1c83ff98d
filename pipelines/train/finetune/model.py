"""Build the model to train, and load a finetuned one."""

from typing import Any

import torch
from diffusers.utils.logging import disable_progress_bar
from safetensors.torch import load_file

from asymflow.models.adapted import AdaptedModel
from asymflow.models.ddt import DdtFlux2
from asymflow.models.latent import load_transformer
from asymflow.models.lifted import LatentModel, PixelModel
from asymflow.subspace import Subspace
from pipelines.core import storage
from pipelines.core.artifacts import Artifact
from pipelines.train.config import config_to_load
from pipelines.train.devices import precision
from pipelines.train.finetune.config import FinetuneSettings
from pipelines.train.metrics_log import AVERAGE

disable_progress_bar()  # of model loading


def adapt(settings: FinetuneSettings, transformer: Any, subspace: Subspace) -> AdaptedModel:
    """Return the model of `settings.model` around a latent transformer, with its adapters, the same on every worker."""
    torch.manual_seed(settings.seed)
    model: AdaptedModel
    if settings.model == "ddt":
        head = settings.ddt
        model = DdtFlux2.from_latent(transformer, subspace, head.blocks, head.heads, head.head_width)
    elif settings.model == "latent":
        model = LatentModel.from_latent(transformer, subspace)
    else:
        model = PixelModel.from_latent(transformer, subspace)
    if settings.lora:
        model.add_lora(settings.lora.rank, settings.lora.alpha, settings.lora.dropout)
    return model


def build_model(settings: FinetuneSettings, subspace: Subspace, device: torch.device | str = "cpu") -> AdaptedModel:
    """Return the model to train, on the CPU except for quantized weights, which are on `device`."""
    resources = settings.resources
    dtype = precision(resources)
    transformer = load_transformer(settings.base, dtype)
    model = adapt(settings, transformer, subspace)
    model.set_precision(dtype)
    if settings.base_quantization:
        model.quantize_base(device)
    if resources.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    if resources.compile:
        model.compile_blocks()
    return model.train()


def load_finetuned(artifact: Artifact, subspace: Subspace, base: str) -> AdaptedModel:
    """Return the moving average of a finetune artifact on its unquantized base, in float32 and evaluation mode.

    Args:
        artifact: artifact of the finetune step.
        subspace: subspace of its basis.
        base: folder of the base model.
    """
    settings = FinetuneSettings.model_validate(config_to_load(artifact.manifest["config"], base=base))
    transformer = load_transformer(base, torch.float32)
    model = adapt(settings, transformer, subspace)
    average = storage.read_file(artifact.file(AVERAGE), load_file)
    with torch.no_grad():
        for key, parameter in model.trainable().items():
            parameter.copy_(average[key])
    return model.eval()
