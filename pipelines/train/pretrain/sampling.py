"""Sampling of a class-conditional pixel model: Heun's method, guidance in an interval (Sec. 6.1, App. B.1)."""

from functools import partial

import torch
from torch import Tensor

from asymflow.guidance import Guidance, guided
from asymflow.models.jit import PixelJiT
from asymflow.samplers import heun
from pipelines.train.pretrain.config import Validation


@torch.no_grad()
def sample_classes(model: PixelJiT, noise: Tensor, labels: Tensor, settings: Validation) -> Tensor:
    """Return images (B, 3, H, W), sRGB in [-1, 1], from noise of that shape and labels (B,)."""
    training = model.training
    model.eval()
    try:
        x_0 = heun(class_velocity(model, labels, guidance_of(settings), settings.sigma_floor), noise, settings.steps)
    finally:
        model.train(training)
    return model.subspace.space.decode(x_0).float().contiguous()


def guidance_of(settings: Validation) -> Guidance:
    """Return the guidance of these settings."""
    return Guidance(settings.guidance, orthogonal=False, interval=settings.guidance_interval)


def class_velocity(model: PixelJiT, labels: Tensor, guidance: Guidance, sigma_floor: float):
    """Return velocity(x_t, sigma) for samplers, with class-free predictions where guidance needs them."""
    nothing = torch.full_like(labels, model.config.classes)
    with_class, without = (partial(_predict, model, which, sigma_floor) for which in (labels, nothing))
    return guided(with_class, without, guidance)


def _predict(model: PixelJiT, labels: Tensor, sigma_floor: float, x_t: Tensor, sigma: Tensor) -> Tensor:
    return model(x_t, sigma, labels, sigma_floor)
