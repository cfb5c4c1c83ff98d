"""A small DINOv2 for representation alignment where published weights are not available.

It is transformers' own class, trained to predict the captions' words from the demo images.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Dinov2Config, Dinov2Model

from asymflow.atomic import atomic_folder
from asymflow.models.dinov2 import tokens_of
from pipelines.toy.autoencoder import to_unit
from pipelines.toy.perceptual import words_of
from pipelines.toy.training import adamw, train

GRID = (4, 4)
"""Rows and columns of tokens: those of a JiT with patches of 16 on images of 64 x 64"""


class _Reader(nn.Module):
    """Predicts words from the mean of all tokens, because the tokens are what a model is aligned with."""

    def __init__(self, words: int):
        super().__init__()
        shape = dict(hidden_size=128, num_hidden_layers=4, num_attention_heads=4, patch_size=14, image_size=56)
        self.encoder = Dinov2Model(Dinov2Config(**shape))
        self.words = nn.Linear(128, words)

    def forward(self, images: Tensor) -> Tensor:
        return self.words(tokens_of(self.encoder, images, GRID).mean(1))


def make_encoder(images: Tensor, captions: list[str], work: Path, out: Path, steps: int) -> dict[str, float]:
    """Train the encoder and write a folder that `Dinov2Model.from_pretrained` reads.

    Args:
        images: Images (N, 3, 64, 64) uint8.
        captions: Their captions.
        work: Folder of the checkpoint, from which an interrupted run resumes.
        out: Folder to write.
        steps: Optimizer steps.

    Returns:
        {"cross_entropy": mean over these images and words, in nats}.
    """
    torch.manual_seed(4)
    targets = words_of(captions)
    reader = _Reader(targets.shape[1])

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(images), (64,), generator=generator)
        x = to_unit(images[index])
        x = torch.where(torch.rand(64, 1, 1, 1, generator=generator) < 0.5, x, x.flip(-1))
        return F.binary_cross_entropy_with_logits(reader(x), targets[index]) * targets.shape[1]

    train("encoder", reader, loss_of, work, steps, [adamw(reader.parameters(), lr=1e-3)], report=dict).eval()
    with torch.no_grad():
        read = torch.cat([reader(to_unit(batch)) for batch in images.split(256)])
    with atomic_folder(out) as partial:
        reader.encoder.to(torch.float16).save_pretrained(partial)
    return {"cross_entropy": F.binary_cross_entropy_with_logits(read, targets).item()}
