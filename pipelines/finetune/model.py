"""The model that is trained, and the one that training gave."""

import torch
from diffusers import Flux2Transformer2DModel
from safetensors.torch import load_file

from asymflow.models.flux2 import PixelFlux2
from asymflow.subspace import Subspace
from pipelines import storage
from pipelines.artifacts import Artifact
from pipelines.finetune.config import FinetuneSettings
from pipelines.finetune.record import AVERAGE


def build_model(settings: FinetuneSettings, subspace: Subspace) -> PixelFlux2:
    """The lifted model with its adapters, the same on every worker."""
    transformer = Flux2Transformer2DModel.from_pretrained(
        settings.base, subfolder="transformer", torch_dtype=torch.bfloat16 if settings.resources.use_gpu else None
    )
    if not settings.resources.use_gpu:
        transformer = transformer.float()
    model = PixelFlux2.from_latent(transformer, subspace)
    if settings.lora:
        torch.manual_seed(settings.seed)
        model.add_lora(settings.lora.rank, settings.lora.alpha, settings.lora.dropout)
    return model


def load_finetuned(artifact: Artifact, subspace: Subspace, base: str) -> PixelFlux2:
    """The moving average of a finetune artifact on its base model's folder, ready to sample from."""
    settings = FinetuneSettings.model_validate({**artifact.manifest["config"], "base": base})
    model = build_model(settings, subspace)
    average = storage.read_file(artifact.file(AVERAGE), load_file)
    with torch.no_grad():
        for key, parameter in model.trainable().items():
            parameter.copy_(average[key])
    return model.eval()
