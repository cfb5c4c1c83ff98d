"""A small backbone for the perceptual term where ImageNet weights are not available.

It is SqueezeNet, one of lpips' architectures, trained to predict the captions' words and the level of added noise.
"""

from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import squeezenet1_1

from pipelines.toy.autoencoder import to_unit
from pipelines.toy.training import adamw, train

WORDS = 256


def words_of(captions: list[str]) -> Tensor:
    """Return indicators (N, 256) of the 256 most frequent words of all captions, or of fewer if there are fewer."""
    split = [set(c.replace(",", "").split()) for c in captions]
    common = Counter(w for words in split for w in words).most_common(WORDS)
    return torch.tensor([[float(word in words) for word, _ in common] for words in split])


def train_backbone(images: Tensor, captions: list[str], folder: Path, steps: int) -> nn.Module:
    """Train on images (N, 3, 64, 64) uint8; return the features that `lpips` uses.

    Without the noise level as a target, the features become insensitive to noise, and so does a perceptual term.
    """
    torch.manual_seed(3)
    features = squeezenet1_1().features
    targets = words_of(captions)
    words = targets.shape[1]
    # SqueezeNet's own head ends in a ReLU, whose output cannot be a logit below 0.
    model = nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, words + 1))

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(images), (64,), generator=generator)
        x = to_unit(images[index])
        x = torch.where(torch.rand(64, 1, 1, 1, generator=generator) < 0.5, x, x.flip(-1))
        level = (0.3 * torch.rand(64, generator=generator) - 0.1).clamp(min=0)  # a third stays clean
        x = x + level[:, None, None, None] * torch.randn(x.shape, generator=generator)
        logits, noisiness = model(x).split([words, 1], dim=1)
        read = F.binary_cross_entropy_with_logits(logits, targets[index]) * words
        return read + F.mse_loss(noisiness.flatten(), 30 * level)

    train("backbone", model, loss_of, folder, steps, [adamw(model.parameters(), lr=1e-3)], report=dict)
    return features
