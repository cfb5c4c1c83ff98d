"""The toy's latent flow model: a small Flux2Transformer2DModel with the ratios of FLUX.2 klein, u-prediction."""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import Flux2Transformer2DModel
from torch import Tensor

from asymflow.losses import flow_matching_loss
from asymflow.models.flux2 import run_transformer
from asymflow.models.text import pad_embeddings
from asymflow.schedule import sample_sigma
from pipelines.toy.training import adamw, train

UNCONDITIONAL = 0.1  # share of captions dropped, for guidance
LONGEST = 20  # tokens of text; the few longer captions count as dropped, or every batch would be padded for them
SHIFT = 1.5  # of sampling
# Of training, wider than usual: the lifted model is evaluated at tau, which is below 0.1 at sigma = 0.2, and pixels
# show the noise that a decoder hides.
TIME_STD = 1.6
LR = 2e-3


@dataclass(frozen=True)
class Stage:
    """Steps at one resolution: latent tokens (N, hw, d) of the images, and of those held out."""

    latents: Tensor
    held_out: Tensor
    grid: tuple[int, int]
    batch: int
    until: int
    """The step that ends it"""


@dataclass(frozen=True)
class Captions:
    """Embeddings (T_i, E), one for each image, and that of the empty caption."""

    embeddings: list[Tensor]
    held_out: list[Tensor]
    unconditional: Tensor

    def batch(self, embeddings: list[Tensor], dropped: Tensor) -> tuple[Tensor, Tensor]:
        """Return padded embeddings (B, LONGEST, E) and their mask; dropped and longer captions are empty ones."""
        chosen = [
            self.unconditional if drop or len(e) > LONGEST else e
            for e, drop in zip(embeddings, dropped.tolist(), strict=True)
        ]
        text, mask = pad_embeddings(chosen)
        missing = LONGEST - text.shape[1]  # one length, or every other one would be compiled
        return F.pad(text, (0, 0, 0, missing)), F.pad(mask, (0, missing))


def new_transformer(width: int, text_width: int) -> Flux2Transformer2DModel:
    """Return an untrained model of 4.9 million values for latent tokens of `width` values.

    With 8 values in a token and patches of 4 x 4 (D = 48), width / D = 5.3, r / width = 1 / 32 and r / D = 1 / 6 are
    the 9B model's.
    """
    torch.manual_seed(2)
    return Flux2Transformer2DModel(
        in_channels=width,
        num_layers=1,
        num_single_layers=4,
        attention_head_dim=64,
        num_attention_heads=4,
        joint_attention_dim=text_width,
        timestep_guidance_channels=256,
        mlp_ratio=1.75,
        axes_dims_rope=(16, 16, 16, 16),
        guidance_embeds=False,
    )


def train_flow(stages: list[Stage], captions: Captions, folder: Path) -> Flux2Transformer2DModel:
    """Train on one resolution after the other: a step on images of half the side costs a quarter."""
    model = new_transformer(stages[0].latents.shape[-1], captions.unconditional.shape[-1])
    compiled = torch.compile(model, dynamic=False)

    def loss_at(stage: Stage, z_0: Tensor, embeddings: list[Tensor], sigma: Tensor, generator: torch.Generator):
        noise = torch.randn(z_0.shape, generator=generator)
        dropped = torch.rand(len(z_0), generator=generator) < UNCONDITIONAL
        text, mask = captions.batch(embeddings, dropped)
        z_t = (1 - sigma)[:, None, None] * z_0 + sigma[:, None, None] * noise
        return flow_matching_loss(noise - z_0, run_transformer(compiled, z_t, sigma, text, stage.grid, mask))

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        stage = next(s for s in stages if step < s.until)
        index = torch.randint(len(stage.latents), (stage.batch,), generator=generator)
        sigma = sample_sigma(stage.batch, std=TIME_STD, generator=generator)
        return loss_at(stage, stage.latents[index], [captions.embeddings[i] for i in index], sigma, generator)

    @torch.no_grad()
    def report() -> dict[str, float]:
        """Loss on held-out images at the last stage's resolution, at evenly spread noise levels."""
        stage, generator = stages[-1], torch.Generator().manual_seed(0)
        count = min(128, len(stage.held_out))
        sigma = sample_sigma(count, std=TIME_STD, generator=generator)
        total = 0.0
        for part in torch.arange(count).split(32):
            embeddings = [captions.held_out[i] for i in part]
            total += len(part) * loss_at(stage, stage.held_out[part], embeddings, sigma[part], generator).item()
        return {"held_out": total / count}

    matrices = [p for p in model.transformer_blocks.parameters() if p.ndim == 2]
    matrices += [p for p in model.single_transformer_blocks.parameters() if p.ndim == 2]
    inside = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in inside]
    muon = torch.optim.Muon(matrices, lr=LR, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    optimizers = [muon, adamw(others, lr=LR)]
    return train("flow", model, loss_of, folder, stages[-1].until, optimizers, report, ema=0.998)
