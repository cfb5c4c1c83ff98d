"""A tiny model with random trained values, and its velocity beside that of a model made of its adapter."""

import torch

from asymflow.models.flux2 import PixelFlux2, image_positions, text_positions
from asymflow.oklab import RELEASED
from asymflow.patches import patchify
from asymflow.subspace import Subspace


def make_subspace(layout="channel_first"):
    A = torch.linalg.qr(torch.randn(768, 128, generator=torch.Generator().manual_seed(0))).Q
    return Subspace(A, 2.4, layout, RELEASED)


def trained(transformer, cls=PixelFlux2, layout="channel_first", rank=4, alpha=None, **options):
    """A model whose trained values are all moved at random, and exact in float16."""
    model = cls.from_latent(transformer, make_subspace(layout), **options)
    if rank:
        model.add_lora(rank, alpha, dropout=0.0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.trainable().values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
            parameter.copy_(parameter.half())
    return model.eval()


def velocities(model, merged, layout="channel_first"):
    generator = torch.Generator().manual_seed(2)
    x_t, text = torch.randn(2, 3, 32, 48, generator=generator), torch.randn(2, 5, 96, generator=generator)
    sigma = torch.tensor([0.3, 0.9])
    with torch.no_grad():
        u = merged(
            patchify(x_t, 16), text, sigma, image_positions((2, 3)), text_positions(5), return_dict=False
        )[0]  # fmt: skip
        return patchify(model(x_t, sigma, text), 16), u
